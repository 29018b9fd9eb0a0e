//! The two files of name resolution: `/etc/resolv.conf` (resolv.conf(5)) and `/etc/hosts`
//! (hosts(5)).
//!
//! As in the C library, an unknown line is ignored, since a word for another program must not break
//! name resolution. The crate `resolv-conf` reports an error instead.

use std::net::IpAddr;

use super::dns;

/// Most nameservers (`MAXNS`).
const MAX_NAMESERVERS: usize = 3;
/// Most search domains.
const MAX_SEARCH: usize = 8;
/// Largest values of options. That of `ndots` is the C library's; the others limit the time of a
/// lookup.
const MAX_NDOTS: usize = 15;
const MAX_TIMEOUT: u64 = 5;
const MAX_ATTEMPTS: usize = 5;
/// Most addresses of one name in `/etc/hosts`.
const MAX_HOSTS: usize = 16;

/// An IP address, with the zone of a link-local IPv6 address (RFC 4007 section 11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zoned {
    /// Address.
    pub ip: IpAddr,
    /// Name or number of an interface.
    pub zone: Option<Box<str>>,
}

impl Zoned {
    /// Parses an address such as `192.0.2.1`, `::1` or `fe80::1%eth0`.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((ip, zone)) = text.split_once('%') else {
            return text.parse().ok().map(|ip| Self { ip, zone: None });
        };
        let ip = ip.parse().ok().filter(IpAddr::is_ipv6)?;
        (!zone.is_empty()).then(|| Self { ip, zone: Some(zone.into()) })
    }
}

/// The content of `/etc/resolv.conf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// Nameservers, at least one, in the order of use.
    pub nameservers: Vec<Zoned>,
    /// Search domains of short names.
    pub search: Vec<Box<str>>,
    /// Number of dots from which on a name is tried as it is first.
    pub ndots: usize,
    /// Longest wait for a nameserver, in seconds.
    pub timeout_s: u64,
    /// Number of queries to each nameserver.
    pub attempts: usize,
    /// Whether lookups take turns with the first nameserver.
    pub rotate: bool,
    /// Whether to use TCP only.
    pub tcp: bool,
}

impl Default for ResolvConf {
    fn default() -> Self {
        let localhost = Zoned { ip: [127, 0, 0, 1].into(), zone: None };
        Self {
            nameservers: vec![localhost],
            search: Vec::new(),
            ndots: 1,
            timeout_s: MAX_TIMEOUT,
            attempts: 2,
            rotate: false,
            tcp: false,
        }
    }
}

impl ResolvConf {
    /// Parses the text of the file.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        let mut nameservers = Vec::new();
        for line in text.lines() {
            let mut words = line.split([' ', '\t', '\r']).filter(|word| !word.is_empty());
            match words.next() {
                Some("nameserver") => {
                    if let Some(address) = words.next().and_then(Zoned::parse)
                        && nameservers.len() < MAX_NAMESERVERS
                    {
                        nameservers.push(address);
                    }
                }
                // The last line counts.
                Some("search") => conf.search = words.filter_map(domain).take(MAX_SEARCH).collect(),
                Some("domain") => conf.search = words.take(1).filter_map(domain).collect(),
                Some("options") => words.for_each(|word| conf.set_option(word)),
                _ => {}
            }
        }
        if !nameservers.is_empty() {
            conf.nameservers = nameservers;
        }
        conf
    }

    fn set_option(&mut self, word: &str) {
        let (name, value) = word.split_once(':').unwrap_or((word, ""));
        let number = value.parse::<u64>();
        let count = |most: usize| number.clone().ok().map(|n| usize::try_from(n).unwrap_or(most).min(most));
        match name {
            "ndots" => self.ndots = count(MAX_NDOTS).unwrap_or(self.ndots),
            "attempts" => self.attempts = count(MAX_ATTEMPTS).unwrap_or(self.attempts).max(1),
            "timeout" => self.timeout_s = number.map_or(self.timeout_s, |seconds| seconds.clamp(1, MAX_TIMEOUT)),
            "rotate" => self.rotate = true,
            "use-vc" => self.tcp = true,
            _ => {}
        }
    }

    /// Returns the names to look up one after the other until one has addresses.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{domain}")).filter(|name| dns::is_name(name));
        let mut names: Vec<String> = searched.collect();
        let first = name.matches('.').count() >= self.ndots;
        names.insert(if first { 0 } else { names.len() }, name.to_owned());
        names
    }
}

/// Returns a search domain. The root, `.`, adds nothing to a name.
fn domain(word: &str) -> Option<Box<str>> {
    let word = word.trim_matches('.');
    (!word.is_empty()).then(|| word.into())
}

/// Finds the addresses of a name in all lines of `/etc/hosts`, in order.
pub fn find_host(text: &str, name: &str) -> Vec<Zoned> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or("");
        let mut words = line.split([' ', '\t', '\r']).filter(|word| !word.is_empty());
        let Some(address) = words.next() else { continue };
        if words.any(|alias| alias.eq_ignore_ascii_case(name))
            && let Some(address) = Zoned::parse(address)
            && !found.contains(&address)
            && found.len() < MAX_HOSTS
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Zoned {
        Zoned::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn parses_addresses_with_zones() {
        assert_eq!(address("fe80::1%eth0"), Zoned { ip: "fe80::1".parse().unwrap(), zone: Some("eth0".into()) });
        assert_eq!(address("192.0.2.1").zone, None);
        for text in ["", "fe80::1%", "192.0.2.1%eth0", "%eth0", "db.example"] {
            assert_eq!(Zoned::parse(text), None, "{text}");
        }
    }

    #[test]
    fn parses_resolv_conf() {
        let conf = ResolvConf::parse(
            "# a comment\n; another\nnameserver 10.0.0.1 # why\r\n\tnameserver\tfe80::1%eth0\nnameserver x\n\
             nameserver ::1\nnameserver 10.0.0.4\ndomain one.example\nsearch a.example. . b.example\n\
             options ndots:3 timeout:2 attempts:3 rotate edns0 use-vc inet6 ndots:x\nsortlist 1.2.3.4\nlookup file bind",
        );
        let nameservers = ["10.0.0.1", "fe80::1%eth0", "::1"].map(address).to_vec();
        let search = vec!["a.example".into(), "b.example".into()];
        let expected = ResolvConf { nameservers, search, ndots: 3, timeout_s: 2, attempts: 3, rotate: true, tcp: true };
        assert_eq!(conf, expected);
        assert_eq!(ResolvConf::parse("search a b\ndomain c.example").search, ["c.example".into()]);
    }

    #[test]
    fn clamps_options_and_keeps_defaults() {
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
        assert_eq!(ResolvConf::parse("nameserver\noptions\nsearch\nnameservers 1.1.1.1"), ResolvConf::default());
        let conf = ResolvConf::parse("options ndots:99999999999999999999 timeout:0 attempts:0");
        assert_eq!((conf.ndots, conf.timeout_s, conf.attempts), (1, 1, 1));
        let conf = ResolvConf::parse("options ndots:99 timeout:300 attempts:99");
        assert_eq!((conf.ndots, conf.timeout_s, conf.attempts), (MAX_NDOTS, MAX_TIMEOUT, MAX_ATTEMPTS));
    }

    #[test]
    fn short_names_are_searched() {
        let conf = ResolvConf::parse("search x.example y.example\noptions ndots:2");
        assert_eq!(conf.candidates("db"), ["db.x.example", "db.y.example", "db"]);
        assert_eq!(conf.candidates("db.z"), ["db.z.x.example", "db.z.y.example", "db.z"]);
        assert_eq!(conf.candidates("a.b.c"), ["a.b.c", "a.b.c.x.example", "a.b.c.y.example"]);
        assert_eq!(conf.candidates("db."), ["db."]);
        assert_eq!(ResolvConf::default().candidates("db"), ["db"]);
    }

    #[test]
    fn finds_names_in_hosts() {
        let text = "127.0.0.1 localhost\n\n#10.0.0.9 db\n10.0.0.1\tdb.example  DB alias # x db2\r\n::1 db\n\
                    10.0.0.1 db\nfe80::1%eth0 link\n256.0.0.1 db\ndb 10.0.0.3";
        assert_eq!(find_host(text, "db"), ["10.0.0.1", "::1"].map(address));
        assert_eq!(find_host(text, "Alias."), [address("10.0.0.1")]);
        assert_eq!(find_host(text, "link"), [address("fe80::1%eth0")]);
        for name in ["db2", "x", "10.0.0.1", "dba", ""] {
            assert_eq!(find_host(text, name), [], "{name}");
        }
    }

    #[test]
    fn parses_every_prefix() {
        let text = "nameserver 10.0.0.1\nsearch a.example\noptions ndots:2 timeout:1\n::1 db # x\n";
        for end in 0..text.len() {
            let conf = ResolvConf::parse(&text[..end]);
            assert!(!conf.nameservers.is_empty() && conf.attempts > 0 && conf.timeout_s > 0, "{end}");
            assert!(find_host(&text[..end], "db").len() <= 1);
        }
    }
}
