//! The table of options, the only list of them: what is typed, the environment, `--help`, the manual page and the
//! completions are read off it.

use std::ops::RangeInclusive;

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
    /// What this option and those behind it are about; of the first of them only.
    pub heading: Option<&'static str>,
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

/// A command: a word in front of the options that has something else done than serving.
#[derive(Debug)]
pub struct CommandRow {
    /// The word.
    pub name: &'static str,
    /// What it does.
    pub help: &'static str,
    pub(super) kind: CommandKind,
}

/// What a command is to the rest of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommandKind {
    Check,
    HealthCheck,
}

/// Every command, in the order in which they are told of. Completions and the manual page are read off it, too.
pub const COMMANDS: &[CommandRow] = &[
    CommandRow { name: "check", help: "Check whether serving with these options would work", kind: CommandKind::Check },
    CommandRow {
        name: "healthcheck",
        help: "Ask whether the server with these options lives",
        kind: CommandKind::HealthCheck,
    },
];

/// Every option, in the order of `--help`. A new one is a row here and a field of [`Config`](super::Config).
pub const OPTIONS: &[OptionRow] = &[
    text(
        "couchdb_url",
        "URL",
        "http[s]://user:password@host[:port][/path]",
        "CouchDB to follow, with the credentials of a server admin (required)",
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
    switch("create_global_changes", "Create the _global_changes database where it is missing"),
    number("feed_heartbeat", "MS", 100..=60_000, "10000", "Milliseconds between CouchDB's heartbeats"),
    choice(
        "couchdb_trusts_forwarded",
        &["auto", "yes", "no"],
        "auto",
        "CouchDB believes X-Forwarded-For; no where a proxy appends",
    ),
    number("login_concurrency", "COUNT", 1..=256, "8", "Log-ins that CouchDB is asked for at once"),
    number("login_queue", "COUNT", 1..=1_000_000, "20000", "Log-ins that wait for their turn"),
    text(
        "host",
        "ADDRESS",
        "an IP address such as 127.0.0.1 or ::1",
        "Address to listen on; all addresses unless given",
    )
    .heading("Ports"),
    number("port", "PORT", 0..=65_535, "3000", "Port to listen on; 0 for any that is free").short('p').bare_variable(),
    text("tls_cert", "FILE", A_CERTIFICATE, "Certificates (PEM) to speak HTTPS with, the server's own first"),
    text("tls_key", "FILE", A_KEY, "Private key (PEM) of the first certificate in --tls_cert"),
    text("tls_port", "PORT", A_PORT, "Port for HTTPS, 0 for any; unless given --port speaks HTTPS"),
    switch("reuse_port", "Share --port and --tls_port with other instances on this machine"),
    text(
        "trusted_proxies",
        "LIST",
        "addresses and networks such as 10.0.0.0/8,::1, separated by commas",
        "Proxies whose X-Forwarded-For is believed; none unless given",
    ),
    text(
        "origins",
        "LIST",
        "* or origins such as https://app.example.com, separated by commas",
        "Origins whose pages may connect; all (*) unless given",
    )
    .heading("Clients"),
    choice("cookie_same_site", &["none", "lax", "strict"], "lax", "SameSite of the cookie io; none: over TLS only"),
    choice("access", &["open", "members"], "open", "Who may watch a database: every user, or who may read it"),
    number("session_check", "SECONDS", 0..=86_400, "300", "How often log-ins are checked again; 0: never"),
    number("ping_interval", "MS", 100..=600_000, "25000", "Milliseconds between pings of Socket.IO"),
    number("ping_timeout", "MS", 0..=600_000, "0", "How late they may be; 0 for what is usual"),
    choice("resync", &["off", "lost", "always"], "lost", "When clients are told to sync anew"),
    text(
        "merge_window",
        "MS",
        "auto, or a number from 0 to 10000",
        "Time to merge changes of a database; unless given 800 on a cluster",
    ),
    number("catch_up_sessions", "SECONDS", 0..=86_400, "0", "Remember what broken Socket.IO sessions were told"),
    switch("no_console", "Serve no console, the page at /"),
    number("max_connections", "COUNT", 0..=10_000_000, "0", "Connections in all; 0: what descriptors allow")
        .heading("Limits"),
    number("max_connections_per_address", "COUNT", 0..=10_000_000, "0", "Of one address; 0 for any number"),
    number("max_newcomers", "COUNT", 1..=10_000_000, "20000", "Connections that nobody logged in on"),
    number("max_unauthenticated_memory", "MIB", 1..=1_048_576, "64", "What all of those hold together"),
    number("login_timeout", "SECONDS", 1..=600, "10", "Time for the log-in to begin"),
    number("max_head", "BYTES", 1_024..=65_536, "16384", "Longest head of a request"),
    number("max_post", "BYTES", 1_024..=16_777_216, "1048576", "Longest body; 4096 before a login"),
    number("request_timeout", "SECONDS", 1..=600, "10", "Time for a head, and again for a body"),
    number("max_message", "BYTES", 1_024..=16_777_216, "1048576", "Longest message; 4096 before a login"),
    number("max_message_rate", "COUNT", 1..=1_000_000, "100", "Messages of a client a second"),
    number("max_requests", "COUNT", 1..=100_000, "256", "Unanswered requests of a client"),
    number("max_subscriptions", "COUNT", 1..=1_000_000, "10000", "Databases of a client"),
    number("max_subscriptions_per_user", "COUNT", 0..=10_000_000, "100000", "Of a user in all; 0: any number"),
    number("max_memory", "MIB", 0..=1_048_576, "0", "Reject new clients beyond this; 0: no limit"),
    number("max_name", "BYTES", 1..=256, "256", "Longest name of a database"),
    number("slow_timeout", "SECONDS", 1..=3_600, "60", "Close clients that read nothing for so long"),
    choice("log_level", &["error", "warn", "info", "debug"], "info", "Least important messages to log")
        .short('l')
        .bare_variable()
        .heading("Operation"),
    choice("log_format", &["text", "json"], "text", "What lines of the log look like"),
    number("drain_timeout", "SECONDS", 0..=600, "10", "Longest time to see the clients off when stopping"),
    text("admin_port", "PORT", A_PORT, "Port for /healthz, /readyz and /metrics; unless given --port has them"),
    optional("print_completions", &["bash", "zsh", "fish"], "Print completions for a shell"),
    switch("print_man", "Print the manual page, for man(1)"),
    switch("demo", "Run beside a built-in stand-in for CouchDB, for a first look"),
    switch("help", "Print this text").short('h').bare_variable(),
    switch("version", "Print the version").short('v').bare_variable(),
];

pub(super) const A_CERTIFICATE: &str = "the name of a file of certificates (PEM)";
pub(super) const A_KEY: &str = "the name of a file with a private key (PEM)";
/// Usable values of `--merge_window`.
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

/// One of these words, or nothing.
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

/// Making a row.
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

/// Reading it.
impl OptionRow {
    pub(super) fn named(name: &str) -> Option<usize> {
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

    /// What is expected for a value, in words.
    pub(super) fn expected(&self) -> String {
        match &self.takes {
            Takes::Switch => "true, false, 1, 0, yes or no".to_owned(),
            Takes::Choice(words) => format!("one of {}", words.join(", ")),
            Takes::Number(_, range) => format!("a number from {} to {}", range.start(), range.end()),
            Takes::Text(_, meaning) => (*meaning).to_owned(),
        }
    }
}
