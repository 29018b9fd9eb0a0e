//! The URL of CouchDB, and percent-encoding (RFC 3986).

use std::borrow::Cow;
use std::fmt;

use super::secret::Secret;

/// The place of CouchDB and the server's admin: `http[s]://user:password@host[:port][/prefix]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CouchUrl {
    /// Whether the scheme is `https`.
    pub tls: bool,
    /// DNS name or IP address. An IPv6 address has no brackets, and its zone (`fe80::1%eth0`) if it
    /// has one.
    pub host: Box<str>,
    /// Port; 80 or 443 if the URL has none.
    pub port: u16,
    /// Path in front of every request, without a final slash; mostly empty.
    pub prefix: Box<str>,
    /// Decoded user name and password, if the URL has them.
    pub credentials: Option<(Box<str>, Secret)>,
}

/// The reason why a text is no URL of CouchDB. The message says what was expected and repeats
/// nothing of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlError {
    /// The scheme is neither `http://` nor `https://`.
    Scheme,
    /// The host between the scheme and the path is missing or malformed.
    Host,
    /// The port is not a number from 1 to 65535.
    Port,
    /// The URL holds a `?` or `#`, but must end with its path.
    QueryOrFragment,
    /// A `%` lacks two hexadecimal digits, or the decoded bytes are not UTF-8.
    Encoding,
    /// The URL holds a space or a control character.
    Character,
    /// The URL has no user name.
    NoAdmin,
    /// The path holds an `@`: most likely the password holds a `/`, so that its rest would become
    /// the path.
    PathAt,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scheme => "it must start with http:// or https://",
            Self::Host => "the host is missing or malformed",
            Self::Port => "the port must be a number from 1 to 65535",
            Self::QueryOrFragment => {
                "it must not hold a query or a fragment (write ? as %3F and # as %23 in a password)"
            }
            Self::Encoding => "a % must be followed by two hexadecimal digits (write a literal % as %25)",
            Self::Character => "it must not hold spaces or control characters",
            Self::NoAdmin => "the credentials of a server admin are missing",
            Self::PathAt => "its path must not hold an @ (write / as %2F in a password, and @ as %40 in a path)",
        })
    }
}

impl CouchUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// Returns a [`UrlError`] that names the faulty part.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        if text.chars().any(|c| c.is_control() || c == ' ') {
            return Err(UrlError::Character);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(UrlError::Scheme),
        };
        if rest.contains(['?', '#']) {
            return Err(UrlError::QueryOrFragment);
        }
        // A password may hold a raw `@`, but not a raw `/`: `http://admin:12/34@host` would have
        // the host `admin` and the path `/34@host`, and logs show the path.
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if path.contains('@') {
            return Err(UrlError::PathAt);
        }
        let (credentials, address) = match authority.rsplit_once('@') {
            Some((credentials, address)) => (Some(parse_credentials(credentials)?), address),
            None => (None, authority),
        };
        let (host, port) = split_address(address)?;
        let port = match port {
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(digits) => match digits.parse::<u16>() {
                Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => port,
                _ => return Err(UrlError::Port),
            },
        };
        Ok(Self { tls, host: host.into(), port, prefix: path.trim_end_matches('/').into(), credentials })
    }

    /// Parses the URL of a server admin.
    ///
    /// # Errors
    /// As [`CouchUrl::parse`], and an error if the URL has no user name.
    pub fn parse_admin(text: &str) -> Result<Self, UrlError> {
        let url = Self::parse(text)?;
        match &url.credentials {
            Some((user, _)) if !user.is_empty() => Ok(url),
            _ => Err(UrlError::NoAdmin),
        }
    }

    /// Parses the content of a file with the URL of a server admin.
    ///
    /// # Errors
    /// As [`CouchUrl::parse_admin`].
    pub fn parse_file(content: &str) -> Result<Self, UrlError> {
        Self::parse_admin(file_content(content))
    }

    /// Returns whether another URL differs in its credentials at most.
    pub fn is_same_place(&self, other: &Self) -> bool {
        let place = |url: &Self| Self { credentials: None, ..url.clone() };
        place(self) == place(other)
    }

    /// Returns the value of the `Host` header (RFC 9110 section 7.2), with a port unless it is the
    /// default one. A zone means nothing to other hosts and is left out (RFC 6874 section 4).
    pub fn host_header(&self) -> String {
        self.authority(self.host.split('%').next().unwrap_or_default().to_owned())
    }

    fn authority(&self, host: String) -> String {
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let own_port = if self.tls { 443 } else { 80 };
        if self.port == own_port { host } else { format!("{host}:{}", self.port) }
    }
}

/// Prints the URL without credentials, for the log.
impl fmt::Display for CouchUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let host = match self.host.split_once('%') {
            Some((address, zone)) => {
                let mut host = format!("{address}%25");
                percent_encode(zone, &mut host);
                host
            }
            None => self.host.to_string(),
        };
        write!(f, "{scheme}://{}{}", self.authority(host), self.prefix)
    }
}

/// Returns the content of a file without the byte order mark of some editors and without white
/// space at the end.
pub fn file_content(content: &str) -> &str {
    content.strip_prefix('\u{feff}').unwrap_or(content).trim_end()
}

fn parse_credentials(text: &str) -> Result<(Box<str>, Secret), UrlError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let decode = |part| percent_decode(part, false).map(Cow::into_owned).ok_or(UrlError::Encoding);
    Ok((decode(user)?.into(), Secret::new(decode(password)?)))
}

fn split_address(address: &str) -> Result<(Cow<'_, str>, Option<&str>), UrlError> {
    if let Some(inner) = address.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or(UrlError::Host)?;
        let (ip, zone) = host.split_once('%').map_or((host, None), |(ip, zone)| (ip, Some(zone)));
        ip.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Host)?;
        let host = match zone {
            None => Cow::Borrowed(host),
            Some(zone) => Cow::Owned(format!("{ip}%{}", decode_zone(zone).ok_or(UrlError::Host)?)),
        };
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(UrlError::Host),
        };
    }
    let (host, port) = match address.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (address, None),
    };
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(fits) {
        return Err(UrlError::Host);
    }
    Ok((host.into(), port))
}

/// Decodes the zone of an IPv6 address, the name or number of an interface. It follows `%25` by RFC
/// 6874, or `%`, which is what people type.
fn decode_zone(zone: &str) -> Option<Cow<'_, str>> {
    let zone = match zone.strip_prefix("25") {
        Some(encoded) if !encoded.is_empty() => percent_decode(encoded, false)?,
        _ => Cow::Borrowed(zone),
    };
    let fits = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '/' | '[' | ']' | '%' | '@');
    (!zone.is_empty() && zone.chars().all(fits)).then_some(zone)
}

/// Masks everything between a leading `scheme://` and the last `@`, to show a URL that could not be
/// parsed. Without such a scheme, everything up to the `@` is masked.
pub fn mask_credentials(text: &str) -> Cow<'_, str> {
    let Some(at) = text.rfind('@') else { return Cow::Borrowed(text) };
    let scheme = text.bytes().take_while(u8::is_ascii_alphabetic).count();
    let start = if text[scheme..].starts_with("://") { scheme + 3 } else { 0 };
    Cow::Owned(format!("{}***{}", &text[..start], &text[at..]))
}

/// Decodes `%XX` (RFC 3986 section 2.1), and `+` as a space if `form` is set
/// (`application/x-www-form-urlencoded`). None if a `%` is malformed or the result is not UTF-8.
pub fn percent_decode(text: &str, form: bool) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|b| b == b'%' || (form && b == b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high << 4 | low).expect("two hexadecimal digits fit a byte")
            }
            b'+' if form => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// Appends `text` as one path segment or query value, with everything but the unreserved characters
/// of RFC 3986 section 2.3 as `%XX`.
pub fn percent_encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Returns the decoded pairs of a query string, in order. Pairs that cannot be decoded are skipped.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((percent_decode(name, true)?, percent_decode(value, true)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> CouchUrl {
        CouchUrl::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn parses_every_part() {
        let url = parse("https://admin:p%40ss%3A%2F@db.example.com:6984/couch/");
        assert!(url.tls);
        assert_eq!((&*url.host, url.port, &*url.prefix), ("db.example.com", 6984, "/couch"));
        let (user, password) = url.credentials.clone().expect("has credentials");
        assert_eq!((&*user, password.reveal()), ("admin", "p@ss:/"));
        assert_eq!(url.to_string(), "https://db.example.com:6984/couch");
        assert!(!format!("{url:?}").contains("p@ss"));
    }

    #[test]
    fn parses_default_ports_and_addresses() {
        assert_eq!(parse("http://localhost").port, 80);
        assert_eq!(parse("https://localhost/").port, 443);
        assert_eq!(parse("https://localhost:443").host_header(), "localhost");
        assert_eq!(parse("http://127.0.0.1:5984").host_header(), "127.0.0.1:5984");
        let url = parse("http://a:b@[::1]:5984/x/y");
        assert_eq!((&*url.host, url.port, &*url.prefix), ("::1", 5984, "/x/y"));
        assert_eq!(url.host_header(), "[::1]:5984");
        assert_eq!(parse("http://a:p@ss@host").credentials.unwrap().1.reveal(), "p@ss");
    }

    #[test]
    fn parses_files_of_editors_and_tools() {
        let url = parse("http://admin:hunter2@db");
        for content in ["", "\n", "\r\n", " \t\r\n\r\n", "\n\n \u{a0}"] {
            for mark in ["", "\u{feff}"] {
                let content = format!("{mark}http://admin:hunter2@db{content}");
                assert_eq!(CouchUrl::parse_file(&content).as_ref(), Ok(&url), "{content:?}");
            }
        }
        for (content, error) in [
            ("", UrlError::Scheme),
            ("\u{feff}\n", UrlError::Scheme),
            ("http://a:b@db\nhttp://a:b@db", UrlError::Character),
            ("http://db", UrlError::NoAdmin),
            ("http://:hunter2@db", UrlError::NoAdmin),
        ] {
            assert_eq!(CouchUrl::parse_file(content), Err(error), "{content:?}");
        }
    }

    #[test]
    fn same_place_ignores_credentials() {
        let url = parse("http://a:b@db:1/x");
        for text in ["http://a:c@db:1/x", "http://db:1/x/", "http://b:b@db:1/x"] {
            assert!(url.is_same_place(&parse(text)), "{text}");
        }
        for text in ["https://a:b@db:1/x", "http://a:b@db2:1/x", "http://a:b@db/x", "http://a:b@db:1"] {
            assert!(!url.is_same_place(&parse(text)), "{text}");
        }
    }

    #[test]
    fn parses_zones_of_addresses() {
        for (text, host, shown) in [
            ("http://a:b@[fe80::1%25eth0]:5984", "fe80::1%eth0", "http://[fe80::1%25eth0]:5984"),
            ("http://[fe80::1%eth0]", "fe80::1%eth0", "http://[fe80::1%25eth0]"),
            ("https://[fe80::1%253]:1/x", "fe80::1%3", "https://[fe80::1%253]:1/x"),
            ("http://[fe80::1%25]", "fe80::1%25", "http://[fe80::1%2525]"),
            ("http://[fe80::1%2525]", "fe80::1%25", "http://[fe80::1%2525]"),
            ("http://[fe80::1%25en%2D0.1]", "fe80::1%en-0.1", "http://[fe80::1%25en-0.1]"),
        ] {
            let url = parse(text);
            assert_eq!((&*url.host, url.to_string().as_str()), (host, shown), "{text}");
            assert_eq!(parse(shown).host, url.host);
            assert!(!url.host_header().contains('%'), "{text}");
        }
        assert_eq!(parse("http://[fe80::1%25eth0]:5984").host_header(), "[fe80::1]:5984");
        for text in ["http://[fe80::1%]", "http://[fe80::1%25a%2Fb]", "http://[fe80::1%25a%]", "http://h%25eth0"] {
            assert_eq!(CouchUrl::parse(text), Err(UrlError::Host), "{text}");
        }
    }

    #[test]
    fn rejects_invalid_urls() {
        for (text, error) in [
            ("", UrlError::Scheme),
            ("localhost:5984", UrlError::Scheme),
            ("ftp://host", UrlError::Scheme),
            ("http://", UrlError::Host),
            ("http://u:p@/x", UrlError::Host),
            ("http://[::1", UrlError::Host),
            ("http://[zz]:1", UrlError::Host),
            ("http://a\u{e9}", UrlError::Host),
            ("http://host:0", UrlError::Port),
            ("http://host:+80", UrlError::Port),
            ("http://host:99999", UrlError::Port),
            ("http://host:", UrlError::Port),
            ("http://host/?a=b", UrlError::QueryOrFragment),
            ("http://u:50%@host", UrlError::Encoding),
            ("http://ho st", UrlError::Character),
            ("http://admin:12/34@host", UrlError::PathAt),
            ("http://admin:se/cret@host", UrlError::PathAt),
        ] {
            assert_eq!(CouchUrl::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn masks_credentials_of_any_text() {
        assert_eq!(mask_credentials("http://u:p@host/x"), "http://***@host/x");
        assert_eq!(mask_credentials("http://u:p@q@host"), "http://***@host");
        assert_eq!(mask_credentials("u:p@host"), "***@host");
        assert_eq!(mask_credentials("ftp://host"), "ftp://host");
        assert_eq!(mask_credentials("u:p://@host"), "***@host");
    }

    #[test]
    fn percent_encoding_round_trips() {
        let mut text = String::new();
        percent_encode("a/b+c ü", &mut text);
        assert_eq!(text, "a%2Fb%2Bc%20%C3%BC");
        assert_eq!(percent_decode(&text, true).unwrap(), "a/b+c ü");
        assert_eq!(percent_decode("a+b", true).unwrap(), "a b");
        assert_eq!(percent_decode("a+b", false).unwrap(), "a+b");
        for broken in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(percent_decode(broken, true), None, "{broken}");
        }
        let pairs: Vec<_> = query_pairs("username=a%20b&&x&broken=%").map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(pairs, ["username=a b", "x="]);
    }
}
