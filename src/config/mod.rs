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
//! | file | what is in it |
//! |---|---|
//! | `table.rs` | the table |
//! | `typed.rs` | step one |
//! | `checked.rs` | step two |
//! | `mistakes.rs` | what is said of mistakes |
//! | `help.rs` | the text of `--help` |
//! | `completions.rs` | completions for shells |
//! | `man.rs` | the manual page |
//!
//! No error repeats a credential, whatever is typed where: see `mistakes.rs`.

mod checked;
mod completions;
mod help;
mod man;
mod mistakes;
mod table;
#[cfg(test)]
mod tests;
mod typed;

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use completions::{Shell, completions};
pub use help::help;
pub use man::man;
pub use table::{COMMANDS, CommandRow, OPTIONS, OptionRow, Takes};

use crate::logging;
use crate::state::access;
use crate::state::forwarded_for::TrustsForwarded;
use crate::state::limits::Limits;
use crate::state::resync::Policy;
use crate::state::routes::{Origins, SameSite};
use crate::state::trusted_proxies::TrustedProxies;
use crate::wire::couchdb::FeedSource;
use crate::wire::url::CouchUrl;
use table::Word;
use typed::Typed;

/// What the server is to do, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CouchDB to follow, with credentials whose user is not empty. None exactly with `demo`.
    pub couchdb_url: Option<CouchUrl>,
    /// The file that the URL was read from, to be read again.
    pub couchdb_url_file: Option<PathBuf>,
    /// The address to listen on; None for all of them, IPv6 and IPv4.
    pub host: Option<IpAddr>,
    /// The port to listen on; 0 for any that is free. It speaks TLS when there is `tls` and no `tls_port`.
    pub port: u16,
    /// What clients are shown over TLS.
    pub tls: Option<TlsFiles>,
    /// The port to speak TLS on beside the plain one; 0 for any that is free. None without `tls`.
    pub tls_port: Option<u16>,
    /// Whether other instances may listen on the ports for clients, too.
    pub reuse_port: bool,
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
    /// Whether CouchDB believes this server about where clients are.
    pub trusts_forwarded: TrustsForwarded,
    /// How many log-ins CouchDB is asked for at once.
    pub login_concurrency: usize,
    /// When clients are told that changes may have been lost.
    pub resync: Policy,
    /// For how long changes of a database are merged after the first one, in milliseconds; None where that depends on
    /// whether CouchDB is a cluster.
    pub merge_window_ms: Option<u64>,
    /// What clients may use.
    pub limits: Limits,
    /// How long it is remembered what broken sessions of Socket.IO were told of; 0 for not at all.
    pub catch_up_sessions_s: u64,
    /// Who may subscribe to what.
    pub access: access::Policy,
    /// How often it is checked that users are still logged in; 0 for never.
    pub session_check_s: u64,
    /// Whose word counts about where a client is.
    pub trusted_proxies: TrustedProxies,
    /// The `SameSite` attribute of the cookie that names a session.
    pub cookie_same_site: SameSite,
    /// What lines of the log look like.
    pub log_format: logging::Format,
    /// The longest time to see the clients off when stopping.
    pub drain_timeout_s: u64,
    /// The port for health, readiness and metrics alone; 0 for any that is free. None where clients' ports have them.
    pub admin_port: Option<u16>,
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

/// Where a server with these options can be asked whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// The address that it listens on; None for all of them.
    pub host: Option<IpAddr>,
    /// The port to ask; not 0.
    pub port: u16,
    /// The certificate that is shown there, where TLS is spoken.
    pub certificate: Option<PathBuf>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Run(Box<Config>),
    /// Check whether serving would work.
    Check(Box<Config>),
    /// Ask the server that runs whether it lives.
    HealthCheck(HealthPort),
    /// Print [`help`].
    Help,
    /// Print [`version`].
    Version,
    /// Print [`completions`].
    Completions(Shell),
    /// Print [`man`].
    Man,
}

/// Why the server cannot be started as asked: one line that names the option, shows its value without
/// credentials and says what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

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
    let mut typed = Typed { given: OPTIONS.iter().map(|_| None).collect(), word: None, mistake: None };
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
    if let Some(shell) = typed.shell()? {
        return Ok(Command::Completions(shell));
    }
    if typed.switch("print_man")? {
        return Ok(Command::Man);
    }
    match typed.word {
        None => typed.check().map(|config| Command::Run(Box::new(config))),
        Some(Word::Check) => typed.check().map(|config| Command::Check(Box::new(config))),
        Some(Word::HealthCheck) => typed.health_port().map(Command::HealthCheck),
    }
}

/// The version alone, as scripts like it.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
