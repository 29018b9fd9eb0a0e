//! The table of options and commands. Parsing, the environment, `--help`, the manual page and the
//! completions all derive from it.

use std::ops::RangeInclusive;

/// An option: one row of [`OPTIONS`].
#[derive(Debug)]
pub struct OptionRow {
    /// Long name, with underscores. On the command line dashes and underscores are interchangeable.
    pub name: &'static str,
    /// Letter of the short form.
    pub short: Option<char>,
    /// Kind of value.
    pub takes: Takes,
    /// Text that stands for an option that is not given.
    pub default: Option<&'static str>,
    /// Whether the value holds a credential: errors mask it, and it may come from a file.
    pub secret: bool,
    /// Whether the bare name is an environment variable as well, as in the images of version 1.
    /// Newer options have none, since such a variable could be set by accident.
    pub bare_variable: bool,
    /// Purpose, for `--help`.
    pub help: &'static str,
    /// Heading of the options from here on, in the first of them.
    pub heading: Option<&'static str>,
}

/// The kind of value that an option takes.
#[derive(Debug)]
pub enum Takes {
    /// No value: the option is on if it is given.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A number: its placeholder and its range.
    Number(&'static str, RangeInclusive<u64>),
    /// A text: its placeholder and its meaning.
    Text(&'static str, &'static str),
}

/// A command: a word that makes the program do something else than run the server.
#[derive(Debug)]
pub struct CommandRow {
    /// Its word on the command line.
    pub name: &'static str,
    /// Purpose, for `--help`.
    pub help: &'static str,
    pub(super) kind: CommandKind,
}

/// A command, for the rest of this folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommandKind {
    Check,
    HealthCheck,
}

/// All commands, in the order of `--help`.
pub const COMMANDS: &[CommandRow] = &[
    CommandRow {
        name: "check",
        help: "Check whether the server would run with these options",
        kind: CommandKind::Check,
    },
    CommandRow {
        name: "healthcheck",
        help: "Check the health of the running server with these options",
        kind: CommandKind::HealthCheck,
    },
];

/// All options, in the order of `--help`. A new option is a row here, a field of
/// [`Config`](super::Config) and its value in `values.rs`.
pub const OPTIONS: &[OptionRow] = &[
    text(
        "couchdb_url",
        "URL",
        "http[s]://user:password@host[:port][/path]",
        "CouchDB, with the credentials of a server admin (required)",
    )
    .short('u')
    .secret()
    .bare_variable()
    .heading("CouchDB"),
    text(
        "ca_file",
        "FILE",
        "a file of certificates (PEM)",
        "Certificates (PEM) to trust for CouchDB besides the built-in ones",
    ),
    choice("feed", &["global_changes", "db_updates"], "global_changes", "Feed of CouchDB to follow"),
    switch("create_global_changes", "Create the _global_changes database if it is missing"),
    number("feed_heartbeat", "MS", 100..=60_000, "10000", "Milliseconds between CouchDB's heartbeats"),
    choice(
        "couchdb_trusts_forwarded",
        &["auto", "yes", "no"],
        "auto",
        "CouchDB trusts X-Forwarded-For; no if a proxy appends",
    ),
    number("login_concurrency", "COUNT", 1..=256, "8", "Logins that CouchDB checks at once"),
    number("login_queue", "COUNT", 1..=1_000_000, "20000", "Logins that wait for their turn"),
    text("host", "ADDRESS", "an IP address such as 127.0.0.1 or ::1", "Address to listen on (default all)")
        .heading("Ports"),
    number("port", "PORT", 0..=65_535, "3000", "Port to listen on; 0 for any free port").short('p').bare_variable(),
    text("tls_cert", "FILE", A_CERTIFICATE, "Certificates (PEM) to speak HTTPS with, the server's own first"),
    text("tls_key", "FILE", A_KEY, "Private key (PEM) of the first certificate in --tls_cert"),
    text("tls_port", "PORT", A_PORT, "Port for HTTPS; without it --port speaks HTTPS"),
    switch("reuse_port", "Share --port and --tls_port with other instances on this machine"),
    text(
        "trusted_proxies",
        "LIST",
        "addresses and networks such as 10.0.0.0/8,::1, separated by commas",
        "Proxies whose X-Forwarded-For is trusted (default none)",
    ),
    text(
        "origins",
        "LIST",
        "* or origins such as https://app.example.com, separated by commas",
        "Origins whose pages may connect (default *)",
    )
    .heading("Clients"),
    choice(
        "cookie_same_site",
        &["none", "lax", "strict"],
        "lax",
        "SameSite of the cookie io; none takes effect over TLS only",
    ),
    choice("access", &["open", "members"], "open", "Databases for every user, or for users who may read them"),
    number("session_check", "SECONDS", 0..=86_400, "300", "Interval of the checks of logins; 0 to disable"),
    number("ping_interval", "MS", 100..=600_000, "25000", "Milliseconds between pings of Socket.IO"),
    number("ping_timeout", "MS", 0..=600_000, "0", "Longest delay of a ping; 0 for the usual one"),
    choice("resync", &["off", "lost", "always"], "lost", "When clients resync"),
    text(
        "merge_window",
        "MS",
        "auto, or a number from 0 to 10000",
        "Time to merge changes of a database (default auto: 800 on a cluster)",
    ),
    number("catch_up_sessions", "SECONDS", 0..=86_400, "0", "Remember broken Socket.IO sessions; 0 to disable"),
    switch("no_console", "Serve no console, the page at /"),
    number("max_connections", "COUNT", 0..=10_000_000, "0", "Connections in total; 0: as descriptors allow")
        .heading("Limits"),
    number("max_connections_per_address", "COUNT", 0..=10_000_000, "0", "Connections of an address; 0 for no limit"),
    number("max_newcomers", "COUNT", 1..=10_000_000, "20000", "Unauthenticated clients"),
    number("max_unauthenticated_memory", "MIB", 1..=1_048_576, "64", "Memory of all unauthenticated clients"),
    number("login_timeout", "SECONDS", 1..=600, "10", "Time until a login begins"),
    number("max_head", "BYTES", 1_024..=65_536, "16384", "Longest request head"),
    number("max_post", "BYTES", 1_024..=16_777_216, "1048576", "Longest body; before a login 4096"),
    number("request_timeout", "SECONDS", 1..=600, "10", "Time for a request head, and again for a body"),
    number("max_message", "BYTES", 1_024..=16_777_216, "1048576", "Longest message; 4096 before a login"),
    number("max_message_rate", "COUNT", 1..=1_000_000, "100", "Messages of a client per second"),
    number("max_requests", "COUNT", 1..=100_000, "256", "Unanswered requests of a client"),
    number("max_subscriptions", "COUNT", 1..=1_000_000, "10000", "Databases of a client"),
    number("max_subscriptions_per_user", "COUNT", 0..=10_000_000, "100000", "Databases of a user; 0 for no limit"),
    number("max_memory", "MIB", 0..=1_048_576, "0", "Reject new clients beyond this; 0 for no limit"),
    number("max_name", "BYTES", 1..=256, "256", "Longest database name"),
    number("slow_timeout", "SECONDS", 1..=3_600, "60", "Close clients that read nothing for this long"),
    choice("log_level", &["error", "warn", "info", "debug"], "info", "Least important messages to log")
        .short('l')
        .bare_variable()
        .heading("Operation"),
    choice("log_format", &["text", "json"], "text", "Format of the log"),
    number("drain_timeout", "SECONDS", 0..=600, "10", "Longest time to close all clients at shutdown"),
    text("admin_port", "PORT", A_PORT, "Port for /healthz, /readyz and /metrics (default --port)"),
    optional("print_completions", &["bash", "zsh", "fish"], "Print completions for a shell"),
    switch("print_man", "Print the manual page, for man(1)"),
    switch("demo", "Run with a small built-in CouchDB, for a first look"),
    switch("help", "Print this text").short('h').bare_variable(),
    switch("version", "Print the version").short('v').bare_variable(),
];

pub(super) const A_CERTIFICATE: &str = "the name of a file of certificates (PEM)";
pub(super) const A_KEY: &str = "the name of a file with a private key (PEM)";
/// Range of `--merge_window`, in milliseconds.
pub(super) const MERGE_WINDOWS: RangeInclusive<u64> = 0..=10_000;
const A_PORT: &str = "a number from 0 to 65535";

const fn row(name: &'static str, takes: Takes, default: Option<&'static str>, help: &'static str) -> OptionRow {
    OptionRow { name, short: None, takes, default, secret: false, bare_variable: false, help, heading: None }
}

const fn switch(name: &'static str, help: &'static str) -> OptionRow {
    row(name, Takes::Switch, None, help)
}

const fn choice(
    name: &'static str,
    words: &'static [&'static str],
    default: &'static str,
    help: &'static str,
) -> OptionRow {
    row(name, Takes::Choice(words), Some(default), help)
}

/// An option that takes one of these words and has no default.
const fn optional(name: &'static str, words: &'static [&'static str], help: &'static str) -> OptionRow {
    row(name, Takes::Choice(words), None, help)
}

const fn number(
    name: &'static str,
    placeholder: &'static str,
    range: RangeInclusive<u64>,
    default: &'static str,
    help: &'static str,
) -> OptionRow {
    row(name, Takes::Number(placeholder, range), Some(default), help)
}

const fn text(name: &'static str, placeholder: &'static str, meaning: &'static str, help: &'static str) -> OptionRow {
    row(name, Takes::Text(placeholder, meaning), None, help)
}

/// Builders of a row.
impl OptionRow {
    const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    const fn bare_variable(mut self) -> Self {
        self.bare_variable = true;
        self
    }

    const fn heading(mut self, heading: &'static str) -> Self {
        self.heading = Some(heading);
        self
    }
}

/// Readers of a row.
impl OptionRow {
    pub(super) fn named(name: &str) -> Option<usize> {
        OPTIONS.iter().position(|row| row.name == name)
    }

    /// Returns the name of the environment variable.
    pub fn variable(&self) -> String {
        format!("HOWLER_{}", self.name.to_ascii_uppercase())
    }

    /// Returns the name of the environment variable that names a file with the value.
    pub fn file_variable(&self) -> Option<String> {
        self.secret.then(|| self.variable() + "_FILE")
    }

    /// Describes the expected value, for errors.
    pub(super) fn expected(&self) -> String {
        match &self.takes {
            Takes::Switch => "true, false, 1, 0, yes or no".to_owned(),
            Takes::Choice(words) => format!("one of {}", words.join(", ")),
            Takes::Number(_, range) => format!("a number from {} to {}", range.start(), range.end()),
            Takes::Text(_, meaning) => (*meaning).to_owned(),
        }
    }
}
