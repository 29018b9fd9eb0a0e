//! The command line and the environment: what was typed, and what it means.
//!
//! [`OPTIONS`] is the only list of options. Step one, `Typed`, finds for each of its rows a text and
//! where that came from; step two, [`Config`], turns texts into checked values. `--help` is the table
//! in print. Nothing here touches the process: arguments, environment and files are handed in.
//!
//! ```text
//! arguments ─▶ HOWLER_NAME, HOWLER_NAME_FILE ─▶ name ─▶ --name ─▶ default     the first that is there
//! └─────────┴──────────── environment ───────────────────────┘
//! ```
//!
//! No error repeats a credential, whatever is typed where: see `shown` and `shown_url`.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::state::access;
use crate::state::proxies::TrustedProxies;
use crate::state::resync::Policy;
use crate::state::routes::Origins;
use crate::wire::couchdb::FeedSource;
use crate::wire::url::{CouchUrl, mask_credentials};

/// What the server is to do, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CouchDB to follow, with credentials whose user is not empty. None exactly with `demo`.
    pub couchdb_url: Option<CouchUrl>,
    /// The address to listen on; None for all of them, IPv6 and IPv4.
    pub host: Option<IpAddr>,
    /// The port to listen on; 0 for any that is free. It speaks TLS when there is `tls` and no `tls_port`.
    pub port: u16,
    /// What clients are shown over TLS.
    pub tls: Option<TlsFiles>,
    /// The port to speak TLS on beside the plain one; 0 for any that is free. None without `tls`.
    pub tls_port: Option<u16>,
    /// The least important messages to log.
    pub log_level: log::LevelFilter,
    /// Certificates (PEM) to trust for CouchDB besides the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// The feed to follow.
    pub feed: FeedSource,
    /// Whether to make the `_global_changes` database where it is missing.
    pub create_global_changes: bool,
    /// How often CouchDB is to send a heartbeat.
    pub feed_heartbeat_ms: u64,
    /// Which origins browsers may come from.
    pub origins: Origins,
    /// Whether the console is left out.
    pub no_console: bool,
    /// How often Engine.IO pings come.
    pub ping_interval_ms: u64,
    /// How late they, or their answers, may be; None for the default of each version.
    pub ping_timeout_ms: Option<u64>,
    /// How many log-ins CouchDB is asked for at once.
    pub login_concurrency: usize,
    /// When clients are told that changes may have been lost.
    pub resync: Policy,
    /// How long a client may take nothing of what is written to it.
    pub slow_timeout_s: u64,
    /// How long it is remembered what broken sessions of Socket.IO were told of; 0 for not at all.
    pub catch_up_sessions_s: u64,
    /// Who may subscribe to what.
    pub access: access::Policy,
    /// How often it is checked that users are still logged in; 0 for never.
    pub session_check_s: u64,
    /// Whose word counts about where a client is.
    pub trusted_proxies: TrustedProxies,
    /// Whether to run beside a built-in stand-in for CouchDB.
    pub demo: bool,
}

/// Where the server's certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The file of certificates (PEM), the server's own first.
    pub certificate: PathBuf,
    /// The file with its private key (PEM).
    pub key: PathBuf,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Run(Box<Config>),
    /// Print [`help`].
    Help,
    /// Print [`version`].
    Version,
}

/// Why the server cannot be started as asked: one line that names the option, shows its value without
/// credentials and says what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

/// One option: a row of [`OPTIONS`].
#[derive(Debug)]
pub struct OptionRow {
    /// The long name, with underscores; dashes are as good on the command line.
    pub name: &'static str,
    /// The letter of its short form.
    pub short: Option<char>,
    /// What follows the name.
    pub takes: Takes,
    /// The text that is as good as typing nothing.
    pub default: Option<&'static str>,
    /// Whether the value holds a credential: then it is masked, and may come from a file.
    pub secret: bool,
    /// Whether earlier images had it: then its bare name is an environment variable, too. Newer
    /// options have no such variable, for it could be there by accident.
    pub bare_variable: bool,
    /// What it is for.
    pub help: &'static str,
}

/// What an option takes.
#[derive(Debug)]
pub enum Takes {
    /// Nothing: on when it is there.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A number in a range.
    Number(&'static str, RangeInclusive<u64>),
    /// A text, whose placeholder comes first and whose meaning second.
    Text(&'static str, &'static str),
}

/// Every option, in the order of `--help`. A new one is a row here and a field of [`Config`].
pub const OPTIONS: &[OptionRow] = &[
    OptionRow {
        name: "couchdb_url",
        short: Some('u'),
        takes: Takes::Text("URL", "http[s]://user:password@host[:port][/path]"),
        default: None,
        secret: true,
        bare_variable: true,
        help: "CouchDB to follow, with the credentials of a server admin (required)",
    },
    OptionRow {
        name: "host",
        short: None,
        takes: Takes::Text("ADDRESS", "an IP address such as 127.0.0.1 or ::1"),
        default: None,
        secret: false,
        bare_variable: false,
        help: "Address to listen on; all addresses unless given",
    },
    OptionRow {
        name: "port",
        short: Some('p'),
        takes: Takes::Number("PORT", 0..=65_535),
        default: Some("3000"),
        secret: false,
        bare_variable: true,
        help: "Port to listen on; 0 for any that is free",
    },
    OptionRow {
        name: "tls_cert",
        short: None,
        takes: Takes::Text("FILE", A_CERTIFICATE),
        default: None,
        secret: false,
        bare_variable: false,
        help: "Certificates (PEM) to speak HTTPS with, the server's own first",
    },
    OptionRow {
        name: "tls_key",
        short: None,
        takes: Takes::Text("FILE", A_KEY),
        default: None,
        secret: false,
        bare_variable: false,
        help: "Private key (PEM) of the first certificate in --tls_cert",
    },
    OptionRow {
        name: "tls_port",
        short: None,
        takes: Takes::Text("PORT", "a number from 0 to 65535"),
        default: None,
        secret: false,
        bare_variable: false,
        help: "Port for HTTPS, 0 for any; unless given --port speaks HTTPS",
    },
    OptionRow {
        name: "log_level",
        short: Some('l'),
        takes: Takes::Choice(&["error", "warn", "info", "debug"]),
        default: Some("info"),
        secret: false,
        bare_variable: true,
        help: "Least important messages to log",
    },
    OptionRow {
        name: "ca_file",
        short: None,
        takes: Takes::Text("FILE", "a file of certificates (PEM)"),
        default: None,
        secret: false,
        bare_variable: false,
        help: "Certificates (PEM) to trust for CouchDB besides the built-in ones",
    },
    OptionRow {
        name: "feed",
        short: None,
        takes: Takes::Choice(&["global_changes", "db_updates"]),
        default: Some("global_changes"),
        secret: false,
        bare_variable: false,
        help: "Feed of CouchDB to follow",
    },
    OptionRow {
        name: "create_global_changes",
        short: None,
        takes: Takes::Switch,
        default: None,
        secret: false,
        bare_variable: false,
        help: "Create the _global_changes database where it is missing",
    },
    OptionRow {
        name: "feed_heartbeat",
        short: None,
        takes: Takes::Number("MS", 100..=60_000),
        default: Some("10000"),
        secret: false,
        bare_variable: false,
        help: "Milliseconds between CouchDB's heartbeats",
    },
    OptionRow {
        name: "origins",
        short: None,
        takes: Takes::Text("LIST", "* or origins such as https://app.example.com, separated by commas"),
        default: None,
        secret: false,
        bare_variable: false,
        help: "Origins whose pages may connect; all (*) unless given",
    },
    OptionRow {
        name: "no_console",
        short: None,
        takes: Takes::Switch,
        default: None,
        secret: false,
        bare_variable: false,
        help: "Serve no console, the page at /",
    },
    OptionRow {
        name: "ping_interval",
        short: None,
        takes: Takes::Number("MS", 100..=600_000),
        default: Some("25000"),
        secret: false,
        bare_variable: false,
        help: "Milliseconds between pings of Socket.IO",
    },
    OptionRow {
        name: "ping_timeout",
        short: None,
        takes: Takes::Number("MS", 0..=600_000),
        default: Some("0"),
        secret: false,
        bare_variable: false,
        help: "How late they may be; 0 for what is usual",
    },
    OptionRow {
        name: "login_concurrency",
        short: None,
        takes: Takes::Number("COUNT", 1..=256),
        default: Some("8"),
        secret: false,
        bare_variable: false,
        help: "Log-ins that CouchDB is asked for at once",
    },
    OptionRow {
        name: "resync",
        short: None,
        takes: Takes::Choice(&["off", "lost", "always"]),
        default: Some("lost"),
        secret: false,
        bare_variable: false,
        help: "When clients are told to sync anew",
    },
    OptionRow {
        name: "slow_timeout",
        short: None,
        takes: Takes::Number("SECONDS", 1..=3_600),
        default: Some("60"),
        secret: false,
        bare_variable: false,
        help: "Close clients that read nothing for so long",
    },
    OptionRow {
        name: "catch_up_sessions",
        short: None,
        takes: Takes::Number("SECONDS", 0..=86_400),
        default: Some("0"),
        secret: false,
        bare_variable: false,
        help: "Remember what broken Socket.IO sessions were told",
    },
    OptionRow {
        name: "access",
        short: None,
        takes: Takes::Choice(&["open", "members"]),
        default: Some("open"),
        secret: false,
        bare_variable: false,
        help: "Who may watch a database: every user, or who may read it",
    },
    OptionRow {
        name: "session_check",
        short: None,
        takes: Takes::Number("SECONDS", 0..=86_400),
        default: Some("300"),
        secret: false,
        bare_variable: false,
        help: "How often log-ins are checked again; 0: never",
    },
    OptionRow {
        name: "trusted_proxies",
        short: None,
        takes: Takes::Text("LIST", "addresses and networks such as 10.0.0.0/8,::1, separated by commas"),
        default: None,
        secret: false,
        bare_variable: false,
        help: "Proxies whose X-Forwarded-For is believed; none unless given",
    },
    OptionRow {
        name: "demo",
        short: None,
        takes: Takes::Switch,
        default: None,
        secret: false,
        bare_variable: false,
        help: "Run beside a built-in stand-in for CouchDB, for a first look",
    },
    OptionRow {
        name: "help",
        short: Some('h'),
        takes: Takes::Switch,
        default: None,
        secret: false,
        bare_variable: true,
        help: "Print this text",
    },
    OptionRow {
        name: "version",
        short: Some('v'),
        takes: Takes::Switch,
        default: None,
        secret: false,
        bare_variable: true,
        help: "Print the version",
    },
];

const A_CERTIFICATE: &str = "the name of a file of certificates (PEM)";
const A_KEY: &str = "the name of a file with a private key (PEM)";

/// Reads arguments (without the program's name) and the environment. Help and version win over any
/// mistake beside them.
///
/// # Errors
/// [`ConfigError`] tells one mistake; those of the command line come first.
pub fn read(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Command, ConfigError> {
    let mut typed = Typed { given: OPTIONS.iter().map(|_| None).collect(), mistake: None };
    typed.take_arguments(args);
    typed.take_environment(env, read_file);
    let (help, version) = (typed.switch("help"), typed.switch("version"));
    if help == Ok(true) {
        return Ok(Command::Help);
    }
    if version == Ok(true) {
        return Ok(Command::Version);
    }
    typed.mistake.take().map_or(Ok(()), Err)?;
    help.and(version)?;
    typed.check().map(|config| Command::Run(Box::new(config)))
}

/// The version alone, as scripts like it.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = HELP_START.to_owned();
    for row in OPTIONS {
        row.describe(&mut text);
    }
    text.push_str(HELP_END);
    text
}

const HELP_START: &str = "\
Tells WebSocket clients which CouchDB databases changed, over one changes feed.

Usage: couchdb-howler --couchdb_url URL [OPTION]...
       couchdb-howler --demo

Options:
";

const HELP_END: &str = "
The command line wins over the environment, and the first variable that is named
here over the others. Dashes are as good as underscores, and --name=value is as
good as --name value. A variable sets a switch with true, 1 or yes, and unsets it
with false, 0 or no. An empty variable counts as unset.

Examples:
  couchdb-howler -u http://admin:secret@localhost:5984 --port 8080
  HOWLER_COUCHDB_URL_FILE=/run/secrets/url couchdb-howler --log_level debug

Exit codes:
  0  stopped as asked
  1  could not start, for example because the port is in use
  2  the command line or the environment is wrong
";

impl OptionRow {
    fn named(name: &str) -> Option<usize> {
        OPTIONS.iter().position(|row| row.name == name)
    }

    /// Its own environment variable.
    pub fn variable(&self) -> String {
        format!("HOWLER_{}", self.name.to_ascii_uppercase())
    }

    /// The environment variable that names a file with its value.
    pub fn file_variable(&self) -> Option<String> {
        self.secret.then(|| self.variable() + "_FILE")
    }

    fn expected(&self) -> String {
        match &self.takes {
            Takes::Switch => "true, false, 1, 0, yes or no".to_owned(),
            Takes::Choice(words) => format!("one of {}", words.join(", ")),
            Takes::Number(_, range) => format!("a number from {} to {}", range.start(), range.end()),
            Takes::Text(_, meaning) => (*meaning).to_owned(),
        }
    }

    /// Its part of `--help`.
    fn describe(&self, text: &mut String) {
        let short = self.short.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        let value = match &self.takes {
            Takes::Switch => String::new(),
            Takes::Choice(words) => format!(" {}", words.join("|")),
            Takes::Number(placeholder, _) | Takes::Text(placeholder, _) => format!(" {placeholder}"),
        };
        let range = match &self.takes {
            Takes::Number(_, range) => format!(", {} to {}", range.start(), range.end()),
            _ => String::new(),
        };
        let default = self.default.map_or_else(String::new, |default| format!(" (default {default}{range})"));
        let mut variables = vec![self.variable()];
        variables.extend(self.file_variable());
        variables.extend(self.bare_variable.then(|| self.name.to_owned()));
        let (name, help, variables) = (self.name, self.help, variables.join(", "));
        write!(text, "  {short}--{name}{value}\n        {help}{default}\n        environment: {variables}\n")
            .expect("writing to a String cannot fail");
    }
}

/// A text and where it came from. Holds secrets in the clear, so it does not print.
struct Given {
    text: String,
    source: Source,
}

enum Source {
    CommandLine,
    Environment(String),
    /// The variable, and the file that it names.
    File(String, PathBuf),
    Default,
}

/// What was typed.
struct Typed {
    /// For each row of [`OPTIONS`], in that order.
    given: Vec<Option<Given>>,
    /// The first thing that could not be read at all.
    mistake: Option<ConfigError>,
}

/// Step one.
impl Typed {
    /// Takes all arguments, past mistakes, for help may be asked for behind them. A later argument
    /// replaces an earlier one.
    fn take_arguments(&mut self, args: impl IntoIterator<Item = OsString>) {
        let mut parser = lexopt::Parser::from_args(args);
        loop {
            let (found, long) = match parser.next() {
                Ok(None) => return,
                Ok(Some(lexopt::Arg::Long(name))) => (find_long(name), true),
                Ok(Some(lexopt::Arg::Short(letter))) => (find_short(letter), false),
                Ok(Some(lexopt::Arg::Value(text))) => (Err(unexpected_argument(&text)), false),
                Err(lexopt::Error::UnexpectedValue { option, .. }) => (Err(unexpected_value(&option)), false),
                Err(_) => (Err(ConfigError::new("the command line cannot be read")), false),
            };
            let taken = found.and_then(|at| Ok((at, take_argument(&OPTIONS[at], long, &mut parser)?)));
            match taken {
                Ok((at, text)) => self.given[at] = Some(Given { text, source: Source::CommandLine }),
                Err(mistake) => self.mistake = self.mistake.take().or(Some(mistake)),
            }
        }
    }

    /// Fills what the command line left open.
    fn take_environment(
        &mut self,
        env: &dyn Fn(&str) -> Option<OsString>,
        read_file: &dyn Fn(&Path) -> io::Result<String>,
    ) {
        for (row, slot) in OPTIONS.iter().zip(&mut self.given).filter(|(_, slot)| slot.is_none()) {
            let default = row.default.map(|text| Given { text: text.to_owned(), source: Source::Default });
            match from_environment(row, env, read_file) {
                Ok(given) => *slot = given.or(default),
                Err(mistake) => self.mistake = self.mistake.take().or(Some(mistake)),
            }
        }
    }
}

/// The value of an option whose name was just parsed.
fn take_argument(row: &OptionRow, long: bool, parser: &mut lexopt::Parser) -> Result<String, ConfigError> {
    let value = match row.takes {
        // What follows the letter of a switch is the next letter, not a value.
        Takes::Switch => Some(long.then(|| parser.optional_value()).flatten().unwrap_or_else(|| "true".into())),
        _ => parser.optional_value().or_else(|| parser.try_raw_args()?.next_if(|next| !looks_like_option(next))),
    };
    let source = &Source::CommandLine;
    let value = value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| row.wrong(source, &format!("expected {}, but the value is missing", row.expected())))?;
    value.into_string().map_err(|_| row.wrong(source, "the value is not UTF-8"))
}

/// Whether an argument can only be an option, not the value of the one in front of it. A negative
/// number and a lone dash can be values.
fn looks_like_option(argument: &OsStr) -> bool {
    matches!(argument.as_encoded_bytes(), [b'-', second, ..] if *second == b'-' || second.is_ascii_alphabetic())
}

fn find_long(name: &str) -> Result<usize, ConfigError> {
    if let Some(at) = OptionRow::named(&name.replace('-', "_")) {
        return Ok(at);
    }
    // Behind other characters a value may have slipped into the name.
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(name.len());
    let plain = &name[..end.min(LONGEST_SHOWN)];
    let cut = if plain.len() < name.len() { "..." } else { "" };
    let hint = nearest(&plain.replace('-', "_")).map_or_else(
        || "--help lists the options".to_owned(),
        |row| format!("did you mean --{}? --help lists the options", row.name),
    );
    Err(ConfigError::new(&format!("unknown option --{plain}{cut}; {hint}")))
}

fn find_short(letter: char) -> Result<usize, ConfigError> {
    let at = OPTIONS.iter().position(|row| row.short == Some(letter));
    at.ok_or_else(|| {
        ConfigError::new(&format!("unknown option -{}; --help lists the options", letter.escape_default()))
    })
}

fn unexpected_argument(text: &OsStr) -> ConfigError {
    let text = shown_url(&text.to_string_lossy());
    ConfigError::new(&format!("unexpected argument {text:?}; every value belongs to an option, see --help"))
}

fn unexpected_value(option: &str) -> ConfigError {
    // Only a short switch gets here alone; behind an unknown option, that is the first mistake.
    ConfigError::new(&format!("{option}: expected no value, but one follows"))
}

/// The option that a wrong name was probably meant for.
fn nearest(name: &str) -> Option<&'static OptionRow> {
    let begun = |row: &&OptionRow| name.len() > 1 && row.name.starts_with(name);
    let near = || OPTIONS.iter().map(|row| (edits(row.name, name), row)).min_by_key(|(edits, _)| *edits);
    let limit = if name.len() < 5 { 1 } else { 2 };
    OPTIONS.iter().find(begun).or_else(|| near().filter(|(edits, _)| *edits <= limit).map(|(_, row)| row))
}

/// How many bytes to insert, delete or replace between two words (Levenshtein distance).
fn edits(left: &str, right: &str) -> usize {
    let mut costs: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut costs[0], i + 1);
        for (j, r) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(l != r);
            diagonal = costs[j + 1];
            costs[j + 1] = replaced.min(diagonal + 1).min(costs[j] + 1);
        }
    }
    costs[right.len()]
}

fn from_environment(
    row: &OptionRow,
    env: &dyn Fn(&str) -> Option<OsString>,
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Option<Given>, ConfigError> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty() && !set_by_kubernetes(name, value));
    let own = row.variable();
    if let Some(file_variable) = row.file_variable()
        && let Some(path) = set(&file_variable)
    {
        if set(&own).is_some() {
            return Err(row.wrong(&Source::Environment(own), &format!("{file_variable} is set, too; expected one")));
        }
        return from_file(row, file_variable, path.into(), read_file).map(Some);
    }
    let mut names = vec![own];
    if row.bare_variable {
        names.extend([row.name.to_owned(), format!("--{}", row.name)]);
    }
    let Some((name, value)) = names.into_iter().find_map(|name| set(&name).map(|value| (name, value))) else {
        return Ok(None);
    };
    let source = Source::Environment(name);
    match value.into_string() {
        Ok(text) => Ok(Some(Given { text, source })),
        Err(_) => Err(row.wrong(&source, "the value is not UTF-8")),
    }
}

/// Kubernetes tells every container of a namespace with a service called `howler` where that is, in
/// `HOWLER_PORT=tcp://10.0.0.1:3000`: not meant for us.
fn set_by_kubernetes(name: &str, value: &OsStr) -> bool {
    let value = value.as_encoded_bytes();
    // And where a service is called `howler-tls`, in HOWLER_TLS_PORT.
    matches!(name, "HOWLER_PORT" | "HOWLER_TLS_PORT")
        && [&b"tcp://"[..], b"udp://", b"sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

fn from_file(
    row: &OptionRow,
    variable: String,
    path: PathBuf,
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Given, ConfigError> {
    let content = read_file(&path);
    let source = Source::File(variable, path);
    let mut text = content.map_err(|error| row.wrong(&source, &format!("the file cannot be read: {error}")))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        return Err(row.wrong(&source, &format!("expected {}, but the file is empty", row.expected())));
    }
    Ok(Given { text, source })
}

/// Step two.
impl Typed {
    fn check(&self) -> Result<Config, ConfigError> {
        let demo = self.switch("demo")?;
        Ok(Config {
            couchdb_url: self.couchdb_url(demo)?,
            host: self.host()?,
            port: u16::try_from(self.number("port")?).expect("the table's range is that of ports"),
            tls: self.tls_files()?,
            tls_port: self.tls_port()?,
            log_level: self.choice("log_level")?.parse().expect("the table's words are names of log levels"),
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
            login_concurrency: usize::try_from(self.number("login_concurrency")?).expect("the table's range is small"),
            resync: match self.choice("resync")? {
                "off" => Policy::Off,
                "always" => Policy::Always,
                _ => Policy::Lost,
            },
            slow_timeout_s: self.number("slow_timeout")?,
            catch_up_sessions_s: self.number("catch_up_sessions")?,
            access: match self.choice("access")? {
                "members" => access::Policy::Members,
                _ => access::Policy::Open,
            },
            session_check_s: self.number("session_check")?,
            trusted_proxies: self.trusted_proxies()?,
            demo,
        })
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
        // As browsers send them: nothing behind the port, not even a slash.
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

    /// The name of a file. The content in its place is not shown: it may be a key.
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
        let Some(given) = given else { return Ok(None) };
        let digits = given.text.bytes().all(|b| b.is_ascii_digit());
        let port = given.text.parse().ok().filter(|_| digits).ok_or_else(|| row.unusable(given, ""))?;
        if self.find("tls_cert").1.is_none() {
            return Err(self.lacks("tls_port", "tls_cert", A_CERTIFICATE));
        }
        if port != 0 && u64::from(port) == self.number("port")? {
            return Err(row.unusable(given, "that is --port already, which speaks plain HTTP beside it"));
        }
        Ok(Some(port))
    }

    /// One option is there without another that belongs to it.
    fn lacks(&self, name: &str, other: &str, expected: &str) -> ConfigError {
        let (row, given) = self.find(name);
        let source = given.map_or(&Source::CommandLine, |given| &given.source);
        row.wrong(source, &format!("expected --{other} beside it, {expected}"))
    }

    fn find(&self, name: &str) -> (&'static OptionRow, Option<&Given>) {
        let at = OptionRow::named(name).expect("the table has a row for every field");
        (&OPTIONS[at], self.given[at].as_ref())
    }

    /// As [`Self::find`], of an option that has a default.
    fn find_filled(&self, name: &str) -> (&'static OptionRow, &Given) {
        let (row, given) = self.find(name);
        (row, given.expect("an option with a default is filled when there is no mistake"))
    }

    fn switch(&self, name: &str) -> Result<bool, ConfigError> {
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
            return Err(row.wrong(&given.source, "expected none with --demo, which brings its own CouchDB"));
        }
        let url = CouchUrl::parse(&given.text).map_err(|error| row.unusable(given, &error.to_string()))?;
        if url.credentials.as_ref().is_none_or(|(user, _)| user.is_empty()) {
            return Err(row.unusable(given, "the credentials of a server admin are missing"));
        }
        Ok(Some(url))
    }
}

/// Mistakes.
impl OptionRow {
    fn wrong(&self, source: &Source, problem: &str) -> ConfigError {
        let name = self.name;
        ConfigError::new(&match source {
            Source::CommandLine | Source::Default => format!("--{name}: {problem}"),
            Source::Environment(variable) => format!("--{name} (environment variable {variable}): {problem}"),
            Source::File(variable, path) => {
                let path = shown_url(&path.to_string_lossy());
                format!("--{name} (environment variable {variable}, file {path:?}): {problem}")
            }
        })
    }

    /// `reason` may be empty. The content of a file is not shown: it may be any secret.
    fn unusable(&self, given: &Given, reason: &str) -> ConfigError {
        let mut problem = format!("expected {}", self.expected());
        if !matches!(given.source, Source::File(..)) {
            let shown = if self.secret { shown_url(&given.text) } else { shown(&given.text) };
            write!(problem, ", got {shown:?}").expect("writing to a String cannot fail");
        }
        if !reason.is_empty() {
            write!(problem, ": {reason}").expect("writing to a String cannot fail");
        }
        self.wrong(&given.source, &problem)
    }
}

impl ConfigError {
    fn new(text: &str) -> Self {
        Self(text.replace(char::is_control, " "))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ConfigError {}

/// The value of an option that should hold no credentials, in case that it does.
fn shown(text: &str) -> String {
    if text.contains('@') || text.contains("://") { shown_url(text) } else { shorten(text) }
}

/// A text that should be a URL, with all hidden that may be a credential: what stands before an `@`,
/// and what stands behind it (or alone) unless it looks like an address and a path. So
/// `http://admin:secret` is hidden, whose host was forgotten, and `http://localhost:5984` is not.
fn shown_url(text: &str) -> String {
    let masked = mask_credentials(text);
    let start = masked.rfind('@').map(|at| at + 1).or_else(|| masked.find("://").map(|at| at + 3)).unwrap_or(0);
    let (head, address) = masked.split_at(start);
    if looks_like_address(address) { shorten(&masked) } else { shorten(&format!("{head}***")) }
}

fn looks_like_address(text: &str) -> bool {
    let ipv6 = text.strip_prefix('[').and_then(|text| text.split_once(']'));
    let rest = ipv6.filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok()).map_or(text, |(_, rest)| rest);
    let port_fits = rest.split_once(':').is_none_or(|(host, rest)| {
        let port = rest.split('/').next().unwrap_or_default();
        !host.contains('/') && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !rest.contains(':')
    });
    port_fits && !rest.contains(['%', '?', '#'])
}

fn shorten(text: &str) -> String {
    let end = text.char_indices().nth(LONGEST_SHOWN).map(|(at, _)| at);
    end.map_or_else(|| text.to_owned(), |end| format!("{}...", &text[..end]))
}

/// How many characters of a wrong value are shown.
const LONGEST_SHOWN: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const URL: &str = "http://admin:hunter2@localhost:5984";

    /// A command line, an environment and the files that there are.
    #[derive(Default)]
    struct Typing {
        args: Vec<OsString>,
        env: HashMap<String, OsString>,
        files: HashMap<PathBuf, String>,
    }

    impl Typing {
        fn env(mut self, name: &str, value: &str) -> Self {
            self.env.insert(name.into(), value.into());
            self
        }

        fn file(mut self, path: &str, content: &str) -> Self {
            self.files.insert(path.into(), content.into());
            self
        }

        fn read(&self) -> Result<Command, ConfigError> {
            let read_file = |path: &Path| self.files.get(path).cloned().ok_or(io::ErrorKind::NotFound.into());
            read(self.args.clone(), &|name| self.env.get(name).cloned(), &read_file)
        }

        fn config(&self) -> Config {
            match self.read() {
                Ok(Command::Run(config)) => *config,
                other => panic!("{:?}: {other:?}", self.args),
            }
        }

        /// The message, which must be one line without a credential.
        fn error(&self) -> String {
            let error = self.read().expect_err(&format!("{:?} {:?}", self.args, self.env)).to_string();
            assert!(!error.contains("hunter2") && !error.contains("ter2"), "{error}");
            assert!(!error.contains(char::is_control), "{error:?}");
            error
        }
    }

    /// Arguments, with a space between each.
    fn args(line: &str) -> Typing {
        Typing { args: line.split_whitespace().map(Into::into).collect(), ..Typing::default() }
    }

    /// As [`args`], behind a URL as it should be.
    fn with_url(line: &str) -> Typing {
        args(&format!("-u {URL} {line}"))
    }

    fn host_of(typing: &Typing) -> Box<str> {
        typing.config().couchdb_url.expect("not a demo").host
    }

    #[test]
    fn defaults() {
        let expected = Config {
            couchdb_url: Some(CouchUrl::parse(URL).unwrap()),
            host: None,
            port: 3000,
            tls: None,
            tls_port: None,
            log_level: log::LevelFilter::Info,
            ca_file: None,
            feed: FeedSource::GlobalChanges,
            create_global_changes: false,
            feed_heartbeat_ms: 10_000,
            origins: Origins::Any,
            no_console: false,
            ping_interval_ms: 25_000,
            ping_timeout_ms: None,
            login_concurrency: 8,
            resync: Policy::Lost,
            slow_timeout_s: 60,
            catch_up_sessions_s: 0,
            access: access::Policy::Open,
            session_check_s: 300,
            trusted_proxies: TrustedProxies::default(),
            demo: false,
        };
        assert_eq!(with_url("").config(), expected);
        assert_eq!(args("--demo").config(), Config { couchdb_url: None, demo: true, ..expected });
    }

    #[test]
    fn every_option_by_flag_and_by_variable() {
        let expected = Config {
            couchdb_url: Some(CouchUrl::parse(URL).unwrap()),
            host: Some("::1".parse().unwrap()),
            port: 0,
            tls: Some(TlsFiles { certificate: "/etc/chain.pem".into(), key: "/etc/a@b/key.pem".into() }),
            tls_port: Some(0),
            log_level: log::LevelFilter::Debug,
            ca_file: Some("/etc/a@b:c.pem".into()),
            feed: FeedSource::DbUpdates,
            create_global_changes: true,
            feed_heartbeat_ms: 100,
            origins: Origins::Listed(vec!["https://a.example".into(), "http://b:81".into()]),
            no_console: true,
            ping_interval_ms: 300,
            ping_timeout_ms: Some(200),
            login_concurrency: 16,
            resync: Policy::Always,
            slow_timeout_s: 5,
            catch_up_sessions_s: 300,
            access: access::Policy::Members,
            session_check_s: 7,
            trusted_proxies: TrustedProxies::parse("10.0.0.0/8,::1").unwrap(),
            demo: false,
        };
        let flags = "--host ::1 --port=0 --tls_cert /etc/chain.pem --tls-key=/etc/a@b/key.pem --tls_port 0 -ldebug --ca-file /etc/a@b:c.pem --feed db_updates \
                     --create-global_changes --feed-heartbeat 100 --origins https://a.example,http://b:81 \
                     --no-console --ping_interval 300 --ping-timeout=200 --login_concurrency 16 --resync always --slow_timeout 5 \
                     --catch-up-sessions 300 --access members --session-check 7 --trusted-proxies 10.0.0.0/8,::1";
        assert_eq!(with_url(flags).config(), expected);
        let variables = args("")
            .env("HOWLER_COUCHDB_URL", URL)
            .env("HOWLER_HOST", "::1")
            .env("HOWLER_ORIGINS", " https://a.example, http://b:81,")
            .env("HOWLER_NO_CONSOLE", "yes")
            .env("HOWLER_PING_INTERVAL", "300")
            .env("HOWLER_PING_TIMEOUT", "200")
            .env("HOWLER_PORT", "0")
            .env("HOWLER_TLS_CERT", "/etc/chain.pem")
            .env("HOWLER_TLS_KEY", "/etc/a@b/key.pem")
            .env("HOWLER_TLS_PORT", "0")
            .env("HOWLER_LOG_LEVEL", "debug")
            .env("HOWLER_CA_FILE", "/etc/a@b:c.pem")
            .env("HOWLER_FEED", "db_updates")
            .env("HOWLER_CREATE_GLOBAL_CHANGES", "true")
            .env("HOWLER_LOGIN_CONCURRENCY", "16")
            .env("HOWLER_RESYNC", "always")
            .env("HOWLER_SLOW_TIMEOUT", "5")
            .env("HOWLER_CATCH_UP_SESSIONS", "300")
            .env("HOWLER_ACCESS", "members")
            .env("HOWLER_SESSION_CHECK", "7")
            .env("HOWLER_TRUSTED_PROXIES", "10.0.0.0/8,::1")
            .env("HOWLER_FEED_HEARTBEAT", "100");
        assert_eq!(variables.config(), expected);
        assert!(args("").env("HOWLER_DEMO", "1").config().demo);
    }

    #[test]
    fn forms_of_options() {
        for line in ["-p 80", "-p80", "-p=80", "--port 80", "--port=80", "--port 1 --port 80", "-p1 --port=80"] {
            assert_eq!(with_url(line).config().port, 80, "{line}");
        }
        for line in ["--couchdb_url", "--couchdb-url", "-u"] {
            assert_eq!(&*host_of(&args(&format!("{line} {URL}"))), "localhost");
            assert_eq!(&*host_of(&args(&format!("{line}={URL}"))), "localhost");
        }
        assert!(!args(&format!("--demo --demo=false -u {URL}")).config().demo);
        for (level, filter) in [("error", log::LevelFilter::Error), ("warn", log::LevelFilter::Warn)] {
            assert_eq!(with_url(&format!("--log-level {level}")).config().log_level, filter);
        }
        assert_eq!(with_url("--host 0.0.0.0").config().host, Some(IpAddr::from([0, 0, 0, 0])));
        assert_eq!(with_url("--port 65535 --feed_heartbeat=60000").config().feed_heartbeat_ms, 60_000);
    }

    #[test]
    fn help_and_version_win_over_mistakes() {
        let help = [
            "-h",
            "--help",
            "--help --version",
            "-vh",
            "--help=yes",
            "--bogus -h",
            "--port x --help",
            "x -h",
            "-u --help",
            "--demo -u http://x -h",
            "-l",
        ];
        for line in help {
            let typing = if line == "-l" { args(line).env("help", "true") } else { args(line) };
            assert_eq!(typing.read(), Ok(Command::Help), "{line}");
        }
        for line in ["-v", "--version", "--bogus=1 -v", "--version --help=false"] {
            assert_eq!(args(line).read(), Ok(Command::Version), "{line}");
        }
        for (name, value, command) in [
            ("help", "true", Command::Help),
            ("HOWLER_HELP", "1", Command::Help),
            ("--help", "yes", Command::Help),
            ("version", "true", Command::Version),
            ("HOWLER_VERSION", "TRUE", Command::Version),
        ] {
            assert_eq!(args("").env(name, value).read(), Ok(command), "{name}");
        }
        assert_eq!(args("-v").env("help", "what").read(), Ok(Command::Version));
        assert!(matches!(with_url("").env("help", "false").env("version", "no").read(), Ok(Command::Run(_))));
        assert!(matches!(with_url("--help=false").env("help", "true").read(), Ok(Command::Run(_))));
    }

    #[test]
    fn precedence() {
        let named = |host: &str| format!("http://u:hunter2@{host}");
        let mut typing = args("").env("--couchdb_url", &named("literal"));
        assert_eq!(&*host_of(&typing), "literal");
        typing = typing.env("couchdb_url", &named("bare"));
        assert_eq!(&*host_of(&typing), "bare");
        let filed = |content: &str| {
            args("").env("couchdb_url", &named("bare")).env("HOWLER_COUCHDB_URL_FILE", "/f").file("/f", content)
        };
        for end in ["", "\n", "\r\n"] {
            assert_eq!(&*host_of(&filed(&(named("file") + end))), "file");
        }
        typing = typing.env("HOWLER_COUCHDB_URL", &named("own"));
        assert_eq!(&*host_of(&typing), "own");
        typing = typing.env("HOWLER_COUCHDB_URL_FILE", "/missing");
        assert!(typing.error().contains("HOWLER_COUCHDB_URL_FILE"));
        typing.args = vec!["-u".into(), named("flag").into()];
        assert_eq!(&*host_of(&typing), "flag");

        assert_eq!(with_url("-p 1").env("HOWLER_PORT", "x").config().port, 1, "what does not count is not checked");
        assert_eq!(with_url("").env("HOWLER_PORT", "2").env("port", "3").config().port, 2);
        assert_eq!(with_url("").env("port", "3").env("--port", "4").config().port, 3);
        assert_eq!(with_url("").env("--log_level", "warn").config().log_level, log::LevelFilter::Warn);
    }

    #[test]
    fn variables_that_do_not_count() {
        let strange = with_url("").env("HOWLER_PORT", "").env("port", "").env("--port", "").env("HOWLER_DEMO", "");
        let strange = strange.env("host", "x").env("feed", "x").env("demo", "true").env("--demo", "true");
        let strange = strange.env("ca_file", "x").env("PORT", "80").env("HOWLER_PORT_FILE", "/x").env("help", "");
        assert_eq!(strange.env("HOWLER_COUCHDB_URL_FILE", "").config(), with_url("").config());
        let kubernetes = with_url("").env("HOWLER_PORT", "tcp://10.0.0.1:3000");
        assert_eq!(kubernetes.config().port, 3000);
        let kubernetes = kubernetes.env("HOWLER_TLS_PORT", "tcp://10.0.0.2:443");
        assert_eq!(kubernetes.config().tls_port, None);
        assert_eq!(kubernetes.env("port", "80").config().port, 80);
    }

    #[test]
    fn mistakes_name_option_value_and_expectation() {
        for (line, parts) in [
            ("--port abc", &["--port: expected a number from 0 to 65535, got \"abc\""][..]),
            ("--port 65536", &["--port", "\"65536\""]),
            ("--port +80", &["--port", "\"+80\""]),
            ("--port -5", &["--port", "\"-5\""]),
            ("--port 99999999999999999999999", &["--port"]),
            ("-p", &["--port: expected a number from 0 to 65535, but the value is missing"]),
            ("--port=", &["--port", "the value is missing"]),
            ("--port --demo", &["--port", "the value is missing"]),
            ("-p --", &["--port", "the value is missing"]),
            ("--feed_heartbeat 99", &["--feed_heartbeat: expected a number from 100 to 60000, got \"99\""]),
            ("--feed_heartbeat 60001", &["--feed_heartbeat"]),
            ("--origins a.example", &["--origins", "is no origin"]),
            ("--origins https://a.example/", &["--origins", "is no origin"]),
            ("--origins ,", &["--origins"]),
            ("-l trace", &["--log_level: expected one of error, warn, info, debug, got \"trace\""]),
            ("--feed changes", &["--feed: expected one of global_changes, db_updates, got \"changes\""]),
            ("--host localhost", &["--host: expected an IP address such as 127.0.0.1 or ::1, got \"localhost\""]),
            ("--demo=maybe", &["--demo: expected true, false, 1, 0, yes or no, got \"maybe\""]),
            ("--demo=", &["--demo", "the value is missing"]),
            ("--demo", &["--couchdb_url: expected none with --demo"]),
            ("--ca_file", &["--ca_file: expected a file of certificates (PEM), but the value is missing"]),
            ("--tls_cert /c", &["--tls_cert: expected --tls_key beside it, the name of a file with a private key"]),
            ("--tls_key /k", &["--tls_key: expected --tls_cert beside it, the name of a file of certificates"]),
            ("--tls_port 1", &["--tls_port: expected --tls_cert beside it"]),
            ("--tls_port 1 --tls_key /k", &["--tls_key: expected --tls_cert beside it"]),
            ("--tls_cert /c --tls_key /k --tls_port 65536", &["--tls_port: expected a number", "\"65536\""]),
            ("--tls_cert /c --tls_key /k --tls_port +1", &["--tls_port: expected a number", "\"+1\""]),
            ("--tls_cert /c --tls_key /k --tls_port 9 -p 9", &["--tls_port: ", "\"9\": that is --port already"]),
            (
                "--tls_cert /c --tls_key=-----BEGIN-hunter2",
                &["--tls_key: expected the name of a file", "the content of one"],
            ),
            ("extra", &["unexpected argument \"extra\""]),
            ("-- -v", &["unexpected argument \"-v\""]),
            ("-", &["unexpected argument \"-\""]),
            ("-x", &["unknown option -x;"]),
            ("---port=1", &["unknown option ---port;", "did you mean --port?"]),
            ("--couchdburl=http://u:hunter2@h", &["unknown option --couchdburl;", "did you mean --couchdb_url?"]),
            ("--log=debug", &["unknown option --log;", "did you mean --log_level?"]),
            ("--create-global-change", &["--create-global-change;", "did you mean --create_global_changes?"]),
            ("--prot 80", &["unknown option --prot; --help lists"]),
            ("--pot 80", &["unknown option --pot; did you mean --port?"]),
            ("--daemonize", &["unknown option --daemonize; --help lists the options"]),
            ("--Port 80", &["unknown option --Port; did you mean --port?"]),
            ("--bogus --port x y", &["unknown option --bogus"]),
        ] {
            let error = with_url(line).error();
            assert!(parts.iter().all(|part| error.contains(part)), "{line}: {error}");
        }
        let missing = args("").error();
        assert_eq!(
            missing,
            "--couchdb_url: it is missing, expected http[s]://user:password@host[:port][/path] (or --demo)"
        );
        assert!(with_url(&format!("--host {}", "a".repeat(5000))).error().len() < 200);
        assert!(with_url(&format!("--{}", "a".repeat(5000))).error().len() < 200);
    }

    #[test]
    fn mistakes_name_the_variable() {
        for (name, value, parts) in [
            ("HOWLER_PORT", "x", &["--port (environment variable HOWLER_PORT): expected", "\"x\""][..]),
            ("port", "tcp://1.2.3.4:80", &["(environment variable port): ", "\"tcp://1.2.3.4:80\""]),
            ("log_level", "loud\nly", &["(environment variable log_level): ", r#""loud\nly""#]),
            ("--log_level", "loud", &["--log_level (environment variable --log_level): "]),
            ("HOWLER_DEMO", "on", &["(environment variable HOWLER_DEMO): expected true", "\"on\""]),
            ("HOWLER_DEMO", "yes", &["--couchdb_url: expected none with --demo"]),
            ("version", "1.2.3", &["--version (environment variable version): expected true"]),
            ("help", "me", &["--help (environment variable help): expected true"]),
        ] {
            let error = with_url("").env(name, value).error();
            assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
        }
        for name in ["HOWLER_COUCHDB_URL", "couchdb_url", "--couchdb_url"] {
            assert!(args("").env(name, "http://h").error().contains(&format!("(environment variable {name}): ")));
            assert!(args("--demo").env(name, URL).error().contains("--demo"));
        }
        let file = || args("").env("HOWLER_COUCHDB_URL_FILE", "/run/url");
        assert!(
            file().error().contains("variable HOWLER_COUCHDB_URL_FILE, file \"/run/url\"): the file cannot be read")
        );
        assert!(file().file("/run/url", "\n").error().ends_with("but the file is empty"));
        assert!(args("").env("HOWLER_COUCHDB_URL_FILE", URL).error().contains("http://***@localhost:5984"));
    }

    #[test]
    #[cfg(unix)]
    fn not_utf_8() {
        use std::os::unix::ffi::OsStringExt;
        let broken = |text: &[u8]| OsString::from_vec([text, b"\xff"].concat());
        for (arg, part) in [
            (&b"--port=8"[..], "--port: the value is not UTF-8"),
            (b"-uhttp://u:hunter2", "--couchdb_url: the value is not UTF-8"),
            (b"--po", "unknown option --po..."),
            (b"-", "unknown option -\\u{fffd}"),
            (b"http://u:hunter2@h", "unexpected argument"),
        ] {
            let mut typing = with_url("");
            typing.args.push(broken(arg));
            let error = typing.error();
            assert!(error.contains(part), "{error}");
        }
        let mut typing = args("");
        typing.env.insert("couchdb_url".into(), broken(b"http://u:hunter2@h"));
        assert!(typing.error().contains("(environment variable couchdb_url): the value is not UTF-8"));
    }

    #[test]
    fn urls_that_are_refused_do_not_leak() {
        for (url, shown) in [
            ("http://localhost:5984", "\"http://localhost:5984\": the credentials"),
            ("http://localhost:5984/couch", "\"http://localhost:5984/couch\": the credentials"),
            ("https://[::1]:5984", "\"https://[::1]:5984\": the credentials"),
            ("http://:hunter2@h", "\"http://***@h\": the credentials"),
            ("http://@h", "\"http://***@h\": the credentials"),
            ("ftp://u:hunter2@h", "\"ftp://***@h\": it must start"),
            ("htp://u:hunter2@h:5984/x", "\"htp://***@h:5984/x\": it must start"),
            ("localhost:5984", "\"localhost:5984\": it must start"),
            ("localhost", "\"localhost\": it must start"),
            ("u:hunter2@h", "\"***@h\": it must start"),
            ("u:hunter2", "\"***\": it must start"),
            ("//u:hunter2", "\"***\": it must start"),
            ("http:/u:hunter2", "\"***\": it must start"),
            ("http:u:hunter2", "\"***\": it must start"),
            ("http://u:hunter2", "\"http://***\": the port"),
            ("http://u:1hunter2", "\"http://***\": the port"),
            ("http://u:12:hunter2", "\"http://***\": the port"),
            ("http://u:hunter2/", "\"http://***\": the port"),
            ("http://u:hunter2]", "\"http://***\": the port"),
            ("http://[u:hunter2]", "\"http://***\": the host"),
            ("http://u:hunter2%40h", "\"http://***\": the port"),
            ("http://u%3Ahunter2%40h", "\"http://***\": the host"),
            ("http://u:hunter2@", "\"http://***@\": the host"),
            ("http://u:hunter2@h:port", "\"http://***@***\": the port"),
            ("http://h:5984@u:hunter2", "\"http://***@***\": the port"),
            ("http://u:hun/ter2@h", "\"http://***@h\": its path must not hold an @"),
            ("http://u:12/hunter2@h", "\"http://***@h\": its path must not hold an @"),
            ("http://u:p@x/hunter2@h", "\"http://***@h\": its path must not hold an @"),
            ("http://u:hun#ter2@h", "\"http://***@h\": it must not hold a query"),
            ("http://u:hun?ter2@h", "\"http://***@h\": it must not hold a query"),
            ("http://h?name=u&password=hunter2", "\"http://***\": it must not hold a query"),
            ("http://u:hunter2%@h", "\"http://***@h\": a % must"),
            ("http://u:hunter2\n@h", "\"http://***@h\": it must not hold spaces"),
            ("http://u:hunter2@h\n@i", "\"http://***@i\": it must not hold spaces"),
        ] {
            let typing = Typing { args: vec!["-u".into(), url.into()], ..Typing::default() };
            let error = typing.error();
            let start = "--couchdb_url: expected http[s]://user:password@host[:port][/path], got ";
            assert!(error.starts_with(start) && error[start.len()..].starts_with(shown), "{url}: {error}");

            args("").env("couchdb_url", url).error();
            let filed = args("").env("HOWLER_COUCHDB_URL_FILE", "/f").file("/f", url).error();
            assert!(!filed.contains("got"), "{filed}");
        }
        args("").env("HOWLER_COUCHDB_URL_FILE", "/f").file("/f", "hunter2\n").error();
    }

    #[test]
    fn urls_in_wrong_places_do_not_leak() {
        for line in [
            "http://u:hunter2@h",
            "u:hunter2@h",
            "http://u:hunter2",
            "-phttp://u:hunter2@h",
            "--port http://u:hunter2",
            "-l u:hunter2@h",
            "--demo=http://u:hunter2@h",
            "--host=http://u:hunter2@h",
            "--couchdb_urlhttp://u:hunter2@h",
            "--http://u:hunter2@h",
            "--couchdb=url=http://u:hunter2@h",
            "-couchdb_url=http://u:hunter2@d",
            "-x=http://u:hunter2@d",
            "http://u:hun ter2@h",
        ] {
            with_url(line).error();
        }
    }

    #[test]
    fn the_table_is_sound() {
        for (at, row) in OPTIONS.iter().enumerate() {
            assert_eq!(OptionRow::named(row.name), Some(at), "{} is there twice", row.name);
            assert!(row.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", row.name);
            let same_letter = OPTIONS.iter().filter(|other| row.short.is_some() && other.short == row.short);
            assert!(same_letter.count() <= 1, "{}", row.name);
            let needs_default = matches!(row.takes, Takes::Choice(_) | Takes::Number(..));
            assert_eq!(row.default.is_some(), needs_default, "{}", row.name);
        }
    }

    #[test]
    fn help_tells_every_option() {
        let help = help();
        for row in OPTIONS {
            let name = format!("--{}", row.name);
            assert!(help.contains(&name) && help.contains(&row.variable()) && help.contains(row.help), "{name}");
        }
        assert!(help.contains("-p, --port PORT") && help.contains("(default 3000, 0 to 65535)"));
        assert!(help.contains("HOWLER_COUCHDB_URL_FILE"));
        assert!(help.lines().all(|line| line.chars().count() <= 81), "{help}");
        assert!(!help.contains("  \n") && help.ends_with('\n'));
        assert!(version().starts_with(|c: char| c.is_ascii_digit()));
    }
}
