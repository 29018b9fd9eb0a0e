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
//! | `raw_options.rs`, `given.rs` | step one |
//! | `values.rs` | step two |
//! | `command.rs` | what comes of it: the command and the configuration |
//! | `error.rs`, `suggestions.rs` | what is said of mistakes |
//! | `help.rs` | the text of `--help` |
//! | `completions.rs` | completions for shells |
//! | `man.rs` | the manual page |
//!
//! No error repeats a credential, whatever is typed where: see `error.rs`.

mod command;
mod completions;
mod error;
mod given;
mod help;
mod man;
mod raw_options;
mod suggestions;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::io;
use std::path::Path;

pub use command::{Command, Config, HealthPort, TlsFiles};
pub use completions::{Shell, completions};
pub use error::ConfigError;
pub use help::{help, version};
pub use man::man;
pub use table::{COMMANDS, CommandRow, OPTIONS, OptionRow, Takes};

use raw_options::RawOptions;
use table::CommandKind;

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
    let mut options = RawOptions::new();
    options.take_arguments(args);
    options.take_environment(env, read_file);
    let (help, version) = (options.switch("help"), options.switch("version"));
    if help == Ok(true) {
        return Ok(Command::Help);
    }
    if version == Ok(true) {
        return Ok(Command::Version);
    }
    options.mistake.take().map_or(Ok(()), Err)?;
    help.and(version)?;
    if let Some(shell) = options.shell()? {
        return Ok(Command::Completions(shell));
    }
    if options.switch("print_man")? {
        return Ok(Command::Man);
    }
    match options.command {
        None => options.check().map(|config| Command::Run(Box::new(config))),
        Some(CommandKind::Check) => options.check().map(|config| Command::Check(Box::new(config))),
        Some(CommandKind::HealthCheck) => options.health_port().map(Command::HealthCheck),
    }
}
