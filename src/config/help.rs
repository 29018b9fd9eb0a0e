//! The text of `--help`.

use std::fmt::Write as _;

use super::table::{COMMANDS, CommandRow, OPTIONS, OptionRow, Takes};

/// The text of `--help`.
pub fn help() -> String {
    let mut text = HELP_START.to_owned();
    for CommandRow { name, help, .. } in COMMANDS {
        writeln!(text, "  {name}\n        {help}").expect("writing to a String cannot fail");
    }
    for row in OPTIONS {
        if let Some(heading) = row.heading {
            write!(text, "\n{heading}:\n").expect("writing to a String cannot fail");
        }
        row.describe(&mut text);
    }
    text.push_str(HELP_END);
    text
}

const HELP_START: &str = "\
Tells WebSocket clients which CouchDB databases changed, over one changes feed.

Usage: couchdb-howler --couchdb_url URL [OPTION]...
       couchdb-howler --demo
       couchdb-howler COMMAND [OPTION]...

Commands:
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
  1  could not start, for example because the port is in use; or what was
     checked is not well
  2  the command line or the environment is wrong
";

impl OptionRow {
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
