//! The text of `--help`.

use std::fmt::Write as _;

use super::table::{COMMANDS, OPTIONS, OptionRow, Takes};

/// The text of `--help`.
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

/// The version alone, as scripts like it.
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

pub(super) const PURPOSE: &str = "Tells WebSocket clients which CouchDB databases changed, over one changes feed.";

const USAGE: &str = "\
Usage: couchdb-howler --couchdb_url URL [OPTION]...
       couchdb-howler --demo
       couchdb-howler COMMAND [OPTION]...
";

pub(super) const RULES: &str = "\
The command line wins over the environment, and the first variable that is named
here over the others. Dashes are as good as underscores, and --name=value is as
good as --name value. A variable sets a switch with true, 1 or yes, and unsets it
with false, 0 or no. An empty variable counts as unset.";

pub(super) const EXAMPLES: &[&str] = &[
    "couchdb-howler -u http://admin:secret@localhost:5984 --port 8080",
    "HOWLER_COUCHDB_URL_FILE=/run/secrets/url couchdb-howler --log_level debug",
];

pub(super) const EXIT_CODES: &[(u8, &str)] = &[
    (0, "stopped as asked"),
    (1, "could not start, for example because the port is in use; or what was\n     checked is not well"),
    (2, "the command line or the environment is wrong"),
];

impl OptionRow {
    /// Its part of `--help`.
    fn describe(&self, text: &mut String) {
        let short = self.short.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        let value = self.value();
        let value = if value.is_empty() { value } else { format!(" {value}") };
        let (name, help, bounds, variables) = (self.name, self.help, self.bounds(), self.variables());
        write!(text, "  {short}--{name}{value}\n        {help}{bounds}\n        environment: {variables}\n")
            .expect("writing to a String cannot fail");
    }

    /// What stands for its value; empty when it takes none.
    pub(super) fn value(&self) -> String {
        match &self.takes {
            Takes::Switch => String::new(),
            Takes::Choice(words) => words.join("|"),
            Takes::Number(placeholder, _) | Takes::Text(placeholder, _) => (*placeholder).to_owned(),
        }
    }

    /// Its default and range in brackets, where it has them.
    pub(super) fn bounds(&self) -> String {
        let range = match &self.takes {
            Takes::Number(_, range) => format!(", {} to {}", range.start(), range.end()),
            _ => String::new(),
        };
        self.default.map_or_else(String::new, |default| format!(" (default {default}{range})"))
    }

    /// The names of its variables.
    pub(super) fn variables(&self) -> String {
        let mut variables = vec![self.variable()];
        variables.extend(self.file_variable());
        variables.extend(self.bare_variable.then(|| self.name.to_owned()));
        variables.join(", ")
    }
}
