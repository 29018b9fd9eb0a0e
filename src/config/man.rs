//! The manual page for `man(1)`, written from the table of options.

use std::fmt::Write as _;

use super::help::{EXAMPLES, EXIT_CODES, PURPOSE, RULES, version};
use super::table::{COMMANDS, OPTIONS, OptionRow};

/// Returns the manual page in roff.
pub fn man() -> String {
    let mut page = format!(".TH COUCHDB\\-HOWLER 1 \"\" \"couchdb\\-howler {}\"\n", escaped(version()));
    section(&mut page, "NAME");
    line(&mut page, "couchdb-howler - notifies WebSocket clients of changed CouchDB databases");
    section(&mut page, "SYNOPSIS");
    page.push_str(".B couchdb\\-howler\n\\-\\-couchdb_url\n.I URL\n.RI [ OPTION ]...\n.br\n");
    page.push_str(".B couchdb\\-howler\n\\-\\-demo\n");
    for row in COMMANDS {
        page.push_str(".br\n.B couchdb\\-howler\n");
        line(&mut page, row.name);
        page.push_str(".RI [ OPTION ]...\n");
    }
    section(&mut page, "DESCRIPTION");
    line(&mut page, PURPOSE);
    page.push_str(".PP\n");
    line(&mut page, RULES);
    for (at, row) in COMMANDS.iter().enumerate() {
        if at == 0 {
            section(&mut page, "COMMANDS");
        }
        page.push_str(".TP\n.B ");
        line(&mut page, row.name);
        line(&mut page, row.help);
    }
    section(&mut page, "OPTIONS");
    for row in OPTIONS {
        describe(row, &mut page);
    }
    section(&mut page, "SIGNALS");
    page.push_str(".TP\n.BR SIGINT \", \" SIGTERM\n");
    line(&mut page, "Close all clients within --drain_timeout and exit; a second one exits at once.");
    page.push_str(".TP\n.B SIGHUP\n");
    line(&mut page, "Read the certificate, its key and the file of the URL again.");
    section(&mut page, "EXIT STATUS");
    for (code, meaning) in EXIT_CODES {
        writeln!(page, ".TP\n.B {code}").expect("writing to a String cannot fail");
        line(&mut page, meaning);
    }
    section(&mut page, "EXAMPLES");
    page.push_str(".EX\n");
    for example in EXAMPLES {
        line(&mut page, example);
    }
    page.push_str(".EE\n");
    page
}

fn describe(row: &OptionRow, page: &mut String) {
    if let Some(heading) = row.heading {
        page.push_str(".SS ");
        line(page, heading);
    }
    page.push_str(".TP\n");
    let short = row.short.map_or_else(String::new, |letter| format!("\\fB\\-{letter}\\fR, "));
    let (name, value) = (escaped(row.name), row.value());
    let value = if value.is_empty() { value } else { format!(" \\fI{}\\fR", escaped(&value)) };
    writeln!(page, "{short}\\fB\\-\\-{name}\\fR{value}").expect("writing to a String cannot fail");
    line(page, &format!("{}{}.", row.help, row.bounds()));
    page.push_str(".br\n");
    line(page, &format!("Environment: {}.", row.variables()));
}

fn section(page: &mut String, name: &str) {
    page.push_str(".SH ");
    line(page, name);
}

/// Appends text. Nothing in it acts as a request or an escape.
fn line(page: &mut String, text: &str) {
    for one in text.lines() {
        // Such a line would be a request, and leading spaces would break the paragraph.
        let one = one.trim_start();
        if one.starts_with(['.', '\'']) {
            page.push_str("\\&");
        }
        page.push_str(&escaped(one));
        page.push('\n');
    }
}

/// Escapes backslashes, and dashes: roff may print a bare dash as a hyphen, which cannot be copied.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}
