//! Step one: the texts of the options, from arguments, environment variables and files.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, LONGEST_SHOWN, shown_url};
use super::given::{Given, Source};
use super::suggestions::{nearest_command, nearest_option};
use super::table::{COMMANDS, CommandKind, OPTIONS, OptionRow, Takes};
use crate::wire::url::file_content;

/// The options that say where the server is. `healthcheck` reads no others, so that no error in
/// them can fail it.
const ENDPOINT_OPTIONS: [&str; 8] =
    ["host", "port", "tls_cert", "tls_key", "tls_port", "admin_port", "help", "version"];

/// The options as texts.
pub(super) struct RawOptions {
    /// One entry for each row of [`OPTIONS`], in the same order.
    pub(super) given: Vec<Option<Given>>,
    /// The command; None to run the server.
    pub(super) command: Option<CommandKind>,
    /// The first error.
    pub(super) error: Option<ConfigError>,
}

impl RawOptions {
    /// Creates options of which none is given.
    pub(super) fn new() -> Self {
        Self { given: OPTIONS.iter().map(|_| None).collect(), command: None, error: None }
    }

    /// Takes all arguments. It goes on after an error, since `--help` may follow. A later argument
    /// replaces an earlier one.
    pub(super) fn take_arguments(&mut self, args: impl IntoIterator<Item = OsString>) {
        let mut parser = lexopt::Parser::from_args(args);
        loop {
            let (found, long) = match parser.next() {
                Ok(None) => return,
                Ok(Some(lexopt::Arg::Long(name))) => (find_long(name), true),
                Ok(Some(lexopt::Arg::Short(letter))) => (find_short(letter), false),
                Ok(Some(lexopt::Arg::Value(text))) => {
                    let kind = COMMANDS.iter().find(|row| text == row.name).map(|row| row.kind);
                    if kind.is_some() && self.command.is_none() {
                        self.command = kind;
                        continue;
                    }
                    (Err(unexpected_argument(&text)), false)
                }
                Err(lexopt::Error::UnexpectedValue { option, .. }) => (Err(unexpected_value(&option)), false),
                Err(_) => (Err(ConfigError::new("the command line cannot be read")), false),
            };
            let taken = found.and_then(|at| Ok((at, take_argument(&OPTIONS[at], long, &mut parser)?)));
            match taken {
                Ok((at, text)) => self.given[at] = Some(Given { text, source: Source::CommandLine }),
                Err(error) => self.error = self.error.take().or(Some(error)),
            }
        }
    }

    /// Takes the environment for options that the command line does not set, then the defaults.
    pub(super) fn take_environment(
        &mut self,
        env: &dyn Fn(&str) -> Option<OsString>,
        read_file: &dyn Fn(&Path) -> io::Result<String>,
    ) {
        let counts =
            |row: &OptionRow| self.command != Some(CommandKind::HealthCheck) || ENDPOINT_OPTIONS.contains(&row.name);
        for (row, slot) in OPTIONS.iter().zip(&mut self.given).filter(|(row, slot)| slot.is_none() && counts(row)) {
            let default = row.default.map(|text| Given { text: text.to_owned(), source: Source::Default });
            match from_environment(row, env, read_file) {
                Ok(given) => *slot = given.or(default),
                Err(error) => self.error = self.error.take().or(Some(error)),
            }
        }
    }
}

/// Takes the value of the option whose name was just parsed.
fn take_argument(row: &OptionRow, long: bool, parser: &mut lexopt::Parser) -> Result<String, ConfigError> {
    let value = match row.takes {
        // The next letter behind a short switch is a switch as well, not a value.
        Takes::Switch => Some(long.then(|| parser.optional_value()).flatten().unwrap_or_else(|| "true".into())),
        _ => parser.optional_value().or_else(|| parser.try_raw_args()?.next_if(|next| !looks_like_option(next))),
    };
    let source = &Source::CommandLine;
    let value = value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| row.wrong(source, &format!("expected {}, but the value is missing", row.expected())))?;
    value.into_string().map_err(|_| row.wrong(source, "the value is not UTF-8"))
}

/// Returns whether an argument can only be an option, and not the value of the option before it. A
/// negative number and a lone dash can be values.
fn looks_like_option(argument: &OsStr) -> bool {
    matches!(argument.as_encoded_bytes(), [b'-', second, ..] if *second == b'-' || second.is_ascii_alphabetic())
}

fn find_long(name: &str) -> Result<usize, ConfigError> {
    if let Some(at) = OptionRow::named(&name.replace('-', "_")) {
        return Ok(at);
    }
    // A value may have slipped into the name, so show nothing behind the first odd character.
    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(name.len());
    let plain = &name[..end.min(LONGEST_SHOWN)];
    let cut = if plain.len() < name.len() { "..." } else { "" };
    let hint = nearest_option(&plain.replace('-', "_")).map_or_else(
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
    let text = text.to_string_lossy();
    let hint = match nearest_command(&text) {
        Some(row) => format!("did you mean the command {}? See --help", row.name),
        None => "only options take values; see --help".to_owned(),
    };
    let text = shown_url(&text);
    ConfigError::new(&format!("unexpected argument {text:?}; {hint}"))
}

fn unexpected_value(option: &str) -> ConfigError {
    // Only a short switch alone gets here. Behind an unknown option, that option is the first
    // error.
    ConfigError::new(&format!("{option}: expected no value, but one follows"))
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
            return Err(
                row.wrong(&Source::Environment(own), &format!("{file_variable} is set as well; expected one of them"))
            );
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

/// Returns whether Kubernetes set a variable. For a service named `howler` it sets
/// `HOWLER_PORT=tcp://10.0.0.1:3000` in every container of the namespace.
fn set_by_kubernetes(name: &str, value: &OsStr) -> bool {
    let value = value.as_encoded_bytes();
    // A service named `howler-tls` sets HOWLER_TLS_PORT.
    matches!(name, "HOWLER_PORT" | "HOWLER_TLS_PORT" | "HOWLER_ADMIN_PORT")
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
    let text = content.map_err(|error| row.wrong(&source, &format!("the file cannot be read: {error}")))?;
    let text = file_content(&text).to_owned();
    if text.is_empty() {
        return Err(row.wrong(&source, &format!("expected {}, but the file is empty", row.expected())));
    }
    Ok(Given { text, source })
}
