//! The command line and the environment, read into a command and its checked configuration.
//!
//! [`OPTIONS`] is the only list of options. Step one, `RawOptions`, finds the text of each option
//! and its source. Step two turns the texts into a [`Config`]. `--help`, the manual page and the
//! completions are written from the same table. Nothing here touches the process: the caller passes
//! in the arguments, the environment and a function that reads files.
//!
//! ```text
//! arguments ─▶ HOWLER_NAME, HOWLER_NAME_FILE ─▶ name ─▶ --name ─▶ default     the first one wins
//! └─────────┴──────────── environment ───────────────────────┘
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `table.rs` | the table of options and commands |
//! | `raw_options.rs`, `given.rs` | step one: texts and their sources |
//! | `values.rs` | step two: texts to values |
//! | `command.rs` | the result: the command and the configuration |
//! | `error.rs`, `suggestions.rs` | errors, and suggestions for misspelled names |
//! | `help.rs` | the text of `--help` |
//! | `completions.rs` | completions for shells |
//! | `man.rs` | the manual page |
//!
//! No error repeats a credential, not even one given for the wrong option: see `error.rs`.

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

/// Reads the arguments, without the program's name, and the environment. `--help` and `--version`
/// take precedence over any error beside them.
///
/// # Errors
/// Returns the first error; those of the command line come first.
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
    options.error.take().map_or(Ok(()), Err)?;
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
