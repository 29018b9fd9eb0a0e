//! The text of `--help`.

use std::fmt::Write as _;

use super::table::{COMMANDS, OPTIONS, OptionRow, Takes};

/// Returns the text of `--help`.
pub fn help() -> String {
    let mut text = format!("{PURPOSE}\n\n{USAGE}");
    for (at, row) in COMMANDS.iter().enumerate() {
        let heading = if at == 0 { "\nCommands:\n" } else { "" };
        write!(text, "{heading}  {}\n        {}\n", row.name, row.help).expect("writing to a String cannot fail");
    }
    for row in OPTIONS {
        if let Some(heading) = row.heading {
            write!(text, "\n{heading}:\n").expect("writing to a String cannot fail");
        }
        row.describe(&mut text);
    }
    write!(text, "\n{RULES}\n\nExamples:\n").expect("writing to a String cannot fail");
    for example in EXAMPLES {
        writeln!(text, "  {example}").expect("writing to a String cannot fail");
    }
    text.push_str("\nExit codes:\n");
    for (code, meaning) in EXIT_CODES {
        writeln!(text, "  {code}  {meaning}").expect("writing to a String cannot fail");
    }
    text
}

/// Returns the version number alone, for scripts.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

pub(super) const PURPOSE: &str = "Notifies WebSocket clients of changed CouchDB databases, over one changes feed.";

const USAGE: &str = "\
Usage: couchdb-howler --couchdb_url URL [OPTION]...
       couchdb-howler --demo
       couchdb-howler COMMAND [OPTION]...
";

pub(super) const RULES: &str = "\
The command line takes precedence over the environment, and a variable that is
listed first over the others. Dashes and underscores are interchangeable, and so
are --name=value and --name value. The values true, 1 and yes set a switch;
false, 0 and no unset it. An empty variable counts as unset.";

pub(super) const EXAMPLES: &[&str] = &[
    "couchdb-howler -u http://admin:secret@localhost:5984 --port 8080",
    "HOWLER_COUCHDB_URL_FILE=/run/secrets/url couchdb-howler --log_level debug",
];

pub(super) const EXIT_CODES: &[(u8, &str)] = &[
    (0, "stopped by a signal, or the check found no fault"),
    (1, "could not start, for example because the port is in use, or the check\n     found a fault"),
    (2, "wrong usage: command line or environment"),
];

impl OptionRow {
    /// Appends the lines of `--help` for the option.
    fn describe(&self, text: &mut String) {
        let short = self.short.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        let value = self.value();
        let value = if value.is_empty() { value } else { format!(" {value}") };
        let (name, help, bounds, variables) = (self.name, self.help, self.bounds(), self.variables());
        write!(text, "  {short}--{name}{value}\n        {help}{bounds}\n        environment: {variables}\n")
            .expect("writing to a String cannot fail");
    }

    /// Returns the placeholder of the value; empty if the option takes none.
    pub(super) fn value(&self) -> String {
        match &self.takes {
            Takes::Switch => String::new(),
            Takes::Choice(words) => words.join("|"),
            Takes::Number(placeholder, _) | Takes::Text(placeholder, _) => (*placeholder).to_owned(),
        }
    }

    /// Returns the default and the range in brackets, if the option has them.
    pub(super) fn bounds(&self) -> String {
        let range = match &self.takes {
            Takes::Number(_, range) => format!(", {} to {}", range.start(), range.end()),
            _ => String::new(),
        };
        self.default.map_or_else(String::new, |default| format!(" (default {default}{range})"))
    }

    /// Returns the names of the environment variables.
    pub(super) fn variables(&self) -> String {
        let mut variables = vec![self.variable()];
        variables.extend(self.file_variable());
        variables.extend(self.bare_variable.then(|| self.name.to_owned()));
        variables.join(", ")
    }
}
