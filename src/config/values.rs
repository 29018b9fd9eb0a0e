//! Step two: the texts of the options become checked values.

use std::net::IpAddr;
use std::path::PathBuf;

use super::command::{Config, HealthPort, TlsFiles};
use super::completions::Shell;
use super::error::ConfigError;
use super::given::{Given, Source};
use super::raw_options::RawOptions;
use super::table::{A_CERTIFICATE, A_KEY, MERGE_WINDOWS, OPTIONS, OptionRow, Takes};
use crate::logging;
use crate::state::access;
use crate::state::forwarded_for::TrustsForwarded;
use crate::state::limits::Limits;
use crate::state::resync::Policy;
use crate::state::routes::{Origins, SameSite};
use crate::state::trusted_proxies::TrustedProxies;
use crate::wire::couchdb::FeedSource;
use crate::wire::url::CouchUrl;

/// `--login_timeout` of the demo unless it is given: time to type a login by hand, in milliseconds.
const DEMO_LOGIN_TIMEOUT_MS: u64 = 60_000;

impl RawOptions {
    pub(super) fn check(&self) -> Result<Config, ConfigError> {
        let demo = self.switch("demo")?;
        Ok(Config {
            couchdb_url: self.couchdb_url(demo)?,
            couchdb_url_file: match self.find("couchdb_url").1 {
                Some(Given { source: Source::File(_, path), .. }) => Some(path.clone()),
                _ => None,
            },
            host: self.host()?,
            port: self.main_port()?,
            tls: self.tls_files()?,
            tls_port: self.tls_port()?,
            reuse_port: self.switch("reuse_port")?,
            log_level: self.choice("log_level")?.parse().expect("the words of the table are log levels"),
            ca_file: self.find("ca_file").1.map(|given| PathBuf::from(&given.text)),
            feed: match self.choice("feed")? {
                "db_updates" => FeedSource::DbUpdates,
                _ => FeedSource::GlobalChanges,
            },
            create_global_changes: self.switch("create_global_changes")?,
            feed_heartbeat_ms: self.number("feed_heartbeat")?,
            origins: self.origins()?,
            no_console: self.switch("no_console")?,
            ping_interval_ms: self.number("ping_interval")?,
            ping_timeout_ms: Some(self.number("ping_timeout")?).filter(|ms| *ms > 0),
            trusts_forwarded: match self.choice("couchdb_trusts_forwarded")? {
                "yes" => TrustsForwarded::Yes,
                "no" => TrustsForwarded::No,
                _ => TrustsForwarded::Auto,
            },
            login_concurrency: self.count("login_concurrency")?,
            resync: match self.choice("resync")? {
                "off" => Policy::Off,
                "always" => Policy::Always,
                _ => Policy::Lost,
            },
            merge_window_ms: self.merge_window()?,
            limits: self.limits(demo)?,
            catch_up_sessions_s: self.number("catch_up_sessions")?,
            access: match self.choice("access")? {
                "members" => access::Policy::Members,
                _ => access::Policy::Open,
            },
            session_check_s: self.number("session_check")?,
            trusted_proxies: self.trusted_proxies()?,
            cookie_same_site: match self.choice("cookie_same_site")? {
                "none" => SameSite::None,
                "strict" => SameSite::Strict,
                _ => SameSite::Lax,
            },
            log_format: match self.choice("log_format")? {
                "json" => logging::Format::Json,
                _ => logging::Format::Text,
            },
            drain_timeout_s: self.number("drain_timeout")?,
            admin_port: self.admin_port()?,
            demo,
        })
    }

    fn limits(&self, demo: bool) -> Result<Limits, ConfigError> {
        let unless_zero = |count: usize| Some(count).filter(|count| *count > 0);
        let milliseconds = |name| Ok::<_, ConfigError>(self.number(name)? * 1_000);
        Ok(Limits {
            connections: unless_zero(self.count("max_connections")?),
            per_address: unless_zero(self.count("max_connections_per_address")?),
            unauthenticated: self.count("max_newcomers")?,
            unauthenticated_bytes: self.mebibytes("max_unauthenticated_memory")?,
            login_timeout: match self.find_filled("login_timeout").1.source {
                Source::Default if demo => DEMO_LOGIN_TIMEOUT_MS,
                _ => milliseconds("login_timeout")?,
            },
            head: self.count("max_head")?,
            request_within: milliseconds("request_timeout")?,
            post: self.count("max_post")?,
            message: self.count("max_message")?,
            messages_per_second: self.number("max_message_rate")?,
            subscriptions: self.count("max_subscriptions")?,
            name: self.count("max_name")?,
            requests: self.count("max_requests")?,
            login_queue: self.count("login_queue")?,
            slow: milliseconds("slow_timeout")?,
            subscriptions_per_user: unless_zero(self.count("max_subscriptions_per_user")?),
            memory: Some(self.number("max_memory")? * 1024 * 1024).filter(|bytes| *bytes > 0),
        })
    }

    fn merge_window(&self) -> Result<Option<u64>, ConfigError> {
        let (row, given) = self.find("merge_window");
        let Some(given) = given.filter(|given| given.text != "auto") else { return Ok(None) };
        let digits = given.text.bytes().all(|b| b.is_ascii_digit());
        let number = given.text.parse().ok().filter(|number| digits && MERGE_WINDOWS.contains(number));
        number.map(Some).ok_or_else(|| row.unusable(given, ""))
    }

    /// Returns the shell to print completions for.
    pub(super) fn shell(&self) -> Result<Option<Shell>, ConfigError> {
        const NAME: &str = "print_completions";
        let (_, Some(_)) = self.find(NAME) else { return Ok(None) };
        Ok(Some(match self.choice(NAME)? {
            "zsh" => Shell::Zsh,
            "fish" => Shell::Fish,
            _ => Shell::Bash,
        }))
    }

    fn trusted_proxies(&self) -> Result<TrustedProxies, ConfigError> {
        let (row, given) = self.find("trusted_proxies");
        let Some(given) = given else { return Ok(TrustedProxies::default()) };
        TrustedProxies::parse(&given.text)
            .map_err(|item| row.unusable(given, &format!("{item:?} is no address or network")))
    }

    fn origins(&self) -> Result<Origins, ConfigError> {
        let (row, given) = self.find("origins");
        let Some(given) = given else { return Ok(Origins::Any) };
        let listed: Vec<&str> = given.text.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
        if listed.contains(&"*") {
            return Ok(Origins::Any);
        }
        // Browsers send nothing behind the port, not even a slash.
        let is_origin = |one: &&str| {
            one.split_once("://").is_some_and(|(scheme, rest)| {
                !scheme.is_empty() && !rest.is_empty() && !rest.contains(['/', '@', '?', '#', '*', ' '])
            })
        };
        match listed.iter().find(|one| !is_origin(one)) {
            Some(one) => Err(row.unusable(given, &format!("{one:?} is no origin"))),
            None if listed.is_empty() => Err(row.unusable(given, "")),
            None => Ok(Origins::Listed(listed.into_iter().map(Into::into).collect())),
        }
    }

    fn tls_files(&self) -> Result<Option<TlsFiles>, ConfigError> {
        match (self.pem_file("tls_cert")?, self.pem_file("tls_key")?) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.lacks("tls_cert", "tls_key", A_KEY)),
            (None, Some(_)) => Err(self.lacks("tls_key", "tls_cert", A_CERTIFICATE)),
        }
    }

    /// Returns the name of a file. An error does not show the value: it may be a key.
    fn pem_file(&self, name: &str) -> Result<Option<PathBuf>, ConfigError> {
        let (row, given) = self.find(name);
        match given {
            Some(given) if given.text.contains("-----") => {
                Err(row.wrong(&given.source, &format!("expected {}, got the content of one", row.expected())))
            }
            given => Ok(given.map(|given| PathBuf::from(&given.text))),
        }
    }

    fn tls_port(&self) -> Result<Option<u16>, ConfigError> {
        let (row, given) = self.find("tls_port");
        let (Some(given), Some(port)) = (given, self.port("tls_port")?) else { return Ok(None) };
        if self.find("tls_cert").1.is_none() {
            return Err(self.lacks("tls_port", "tls_cert", A_CERTIFICATE));
        }
        if port != 0 && u64::from(port) == self.number("port")? {
            return Err(row.unusable(given, "--port has that number, and speaks plain HTTP beside it"));
        }
        Ok(Some(port))
    }

    fn admin_port(&self) -> Result<Option<u16>, ConfigError> {
        let (row, given) = self.find("admin_port");
        let (Some(given), Some(port)) = (given, self.port("admin_port")?) else { return Ok(None) };
        let others = [Some(self.number("port")?), self.tls_port()?.map(u64::from)];
        if port != 0 && others.contains(&Some(port.into())) {
            return Err(row.unusable(given, "clients use that port"));
        }
        Ok(Some(port))
    }

    /// Returns a port that may be missing.
    fn port(&self, name: &str) -> Result<Option<u16>, ConfigError> {
        let (row, given) = self.find(name);
        let Some(given) = given else { return Ok(None) };
        let digits = given.text.bytes().all(|b| b.is_ascii_digit());
        given.text.parse().ok().filter(|_| digits).ok_or_else(|| row.unusable(given, "")).map(Some)
    }

    /// Returns where to check the health of the server. It reads no other options.
    pub(super) fn health_port(&self) -> Result<HealthPort, ConfigError> {
        let (host, certificate) = (self.host()?, self.tls_files()?.map(|files| files.certificate));
        let (name, port, certificate) = match (self.admin_port()?, self.tls_port()?) {
            (Some(port), _) => ("admin_port", port, None),
            (None, Some(_)) => ("port", self.main_port()?, None),
            (None, None) => ("port", self.main_port()?, certificate),
        };
        if port == 0 {
            let (row, given) = self.find_filled(name);
            return Err(
                row.wrong(&given.source, "expected the port of the running server, got 0, which stands for any")
            );
        }
        Ok(HealthPort { host, port, certificate })
    }

    fn main_port(&self) -> Result<u16, ConfigError> {
        Ok(u16::try_from(self.number("port")?).expect("the range of the table is that of ports"))
    }

    /// Returns the error for an option that lacks another one beside it.
    fn lacks(&self, name: &str, other: &str, expected: &str) -> ConfigError {
        let (row, given) = self.find(name);
        let source = given.map_or(&Source::CommandLine, |given| &given.source);
        row.wrong(source, &format!("expected --{other} beside it, {expected}"))
    }

    fn find(&self, name: &str) -> (&'static OptionRow, Option<&Given>) {
        let at = OptionRow::named(name).expect("the table has a row for every field");
        (&OPTIONS[at], self.given[at].as_ref())
    }

    /// As [`Self::find`], for an option with a default.
    fn find_filled(&self, name: &str) -> (&'static OptionRow, &Given) {
        let (row, given) = self.find(name);
        (row, given.expect("an option with a default has a text unless there was an error"))
    }

    pub(super) fn switch(&self, name: &str) -> Result<bool, ConfigError> {
        let (row, given) = self.find(name);
        let Some(given) = given else { return Ok(false) };
        match given.text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            _ => Err(row.unusable(given, "")),
        }
    }

    fn choice(&self, name: &str) -> Result<&'static str, ConfigError> {
        let (row, given) = self.find_filled(name);
        let Takes::Choice(words) = row.takes else { unreachable!("{name} is a choice in the table") };
        words.iter().copied().find(|word| *word == given.text).ok_or_else(|| row.unusable(given, ""))
    }

    fn number(&self, name: &str) -> Result<u64, ConfigError> {
        let (row, given) = self.find_filled(name);
        let Takes::Number(_, range) = &row.takes else { unreachable!("{name} is a number in the table") };
        let digits = given.text.bytes().all(|b| b.is_ascii_digit());
        let number = given.text.parse().ok().filter(|number| digits && range.contains(number));
        number.ok_or_else(|| row.unusable(given, ""))
    }

    /// As [`Self::number`], for counts of things in memory.
    fn count(&self, name: &str) -> Result<usize, ConfigError> {
        Ok(usize::try_from(self.number(name)?).expect("the ranges of the table fit any usize"))
    }

    /// As [`Self::number`], for mebibytes. Returns bytes.
    fn mebibytes(&self, name: &str) -> Result<usize, ConfigError> {
        // The largest allowed value does not fit a 32-bit `usize`.
        Ok(usize::try_from(self.number(name)? * 1024 * 1024).unwrap_or(usize::MAX))
    }

    fn host(&self) -> Result<Option<IpAddr>, ConfigError> {
        let (row, given) = self.find("host");
        given.map(|given| given.text.parse().map_err(|_| row.unusable(given, ""))).transpose()
    }

    fn couchdb_url(&self, demo: bool) -> Result<Option<CouchUrl>, ConfigError> {
        let (row, given) = self.find("couchdb_url");
        let Some(given) = given else {
            let missing = format!("it is missing, expected {} (or --demo)", row.expected());
            return if demo { Ok(None) } else { Err(row.wrong(&Source::CommandLine, &missing)) };
        };
        if demo {
            return Err(row.wrong(&given.source, "expected none with --demo, which has its own CouchDB"));
        }
        CouchUrl::parse_admin(&given.text).map(Some).map_err(|error| row.unusable(given, &error.to_string()))
    }
}
