//! Shell completions, written from the table of options.

use std::fmt::Write as _;

use super::table::{COMMANDS, OPTIONS, OptionRow, Takes};

/// A shell with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// bash 4 or newer.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// The words that a shell can offer for a value.
enum Values {
    /// The option takes no value.
    None,
    Words(&'static [&'static str]),
    Files,
    /// The shell cannot know the value; this placeholder stands for it.
    Own(&'static str),
}

/// Returns the completions as a script for a shell.
pub fn completions(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

impl OptionRow {
    fn values(&self) -> Values {
        match self.takes {
            Takes::Switch => Values::None,
            Takes::Choice(words) => Values::Words(words),
            Takes::Text("FILE", _) => Values::Files,
            Takes::Text(placeholder, _) | Takes::Number(placeholder, _) => Values::Own(placeholder),
        }
    }
}

fn bash() -> String {
    let mut cases = String::new();
    for row in OPTIONS {
        let offer = match row.values() {
            Values::None => continue,
            Values::Words(words) => {
                format!("mapfile -t COMPREPLY < <(compgen -W '{}' -- \"$current\")", words.join(" "))
            }
            Values::Files => "mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n            \
                              compopt -o filenames 2> /dev/null"
                .to_owned(),
            Values::Own(_) => ":".to_owned(),
        };
        let short = row.short.map_or_else(String::new, |letter| format!("_{letter} | "));
        push(&mut cases, format_args!("        {short}__{})\n            {offer}\n            return ;;\n", row.name));
    }
    let options = OPTIONS.iter().map(|row| format!("--{}", row.name));
    let words = options.chain(COMMANDS.iter().map(|row| row.name.to_owned())).collect::<Vec<_>>().join(" ");
    format!(
        "\
# Completions of couchdb-howler for bash.
_couchdb_howler() {{
    local current=\"${{COMP_WORDS[COMP_CWORD]}}\" previous=\"${{COMP_WORDS[COMP_CWORD - 1]}}\"
    COMPREPLY=()
    # --name=value comes in three words.
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=\"${{COMP_WORDS[COMP_CWORD - 2]}}\"
    fi
    # Dashes and underscores are interchangeable.
    case \"${{previous//-/_}}\" in
{cases}    esac
    mapfile -t COMPREPLY < <(compgen -W '{words}' -- \"$current\")
}}
complete -F _couchdb_howler couchdb-howler
"
    )
}

fn zsh() -> String {
    let mut specs = String::new();
    for row in OPTIONS {
        let (equals, value) = match row.values() {
            Values::None => ("", String::new()),
            Values::Words(words) => ("=", format!(":{}:({})", row.name, words.join(" "))),
            Values::Files => ("=", ":file:_files".to_owned()),
            Values::Own(placeholder) => ("=", format!(":{placeholder}: ")),
        };
        let help = quoted(&escaped(row.help, &['[', ']', ':', '\\']));
        let (name, help) = (row.name, &help[1..help.len() - 1]);
        let start = row.short.map_or_else(
            || format!("'--{name}{equals}"),
            |letter| format!("'(-{letter} --{name})'{{-{letter},--{name}{equals}}}'"),
        );
        push(&mut specs, format_args!(" \\\n        {start}[{help}]{value}'"));
    }
    let commands = COMMANDS.iter().map(|row| {
        let help = escaped(row.help, &[' ', '(', ')', ':', '\\', ';', '"', '\'']);
        format!("{}\\:{help}", row.name)
    });
    let commands = commands.collect::<Vec<_>>().join(" ");
    if !commands.is_empty() {
        push(&mut specs, format_args!(" \\\n        {}", quoted(&format!("::command:(({commands}))"))));
    }
    format!(
        "\
#compdef couchdb-howler
# Completions of couchdb-howler for zsh.
_couchdb_howler() {{
    _arguments -s{specs}
}}
# Read as a file of functions, or by source.
if [[ $funcstack[1] == _couchdb_howler ]]; then
    _couchdb_howler \"$@\"
else
    compdef _couchdb_howler couchdb-howler
fi
"
    )
}

fn fish() -> String {
    let mut text = "# Completions of couchdb-howler for fish.\ncomplete -c couchdb-howler -f\n".to_owned();
    for row in COMMANDS {
        let help = quoted_for_fish(row.help);
        let (name, first) = (row.name, "-n __fish_use_subcommand");
        push(&mut text, format_args!("complete -c couchdb-howler {first} -a {name} -d {help}\n"));
    }
    for row in OPTIONS {
        let short = row.short.map_or_else(String::new, |letter| format!(" -s {letter}"));
        let values = match row.values() {
            Values::None => String::new(),
            Values::Words(words) => format!(" -x -a '{}'", words.join(" ")),
            Values::Files => " -r -F".to_owned(),
            Values::Own(_) => " -x".to_owned(),
        };
        let (name, help) = (row.name, quoted_for_fish(row.help));
        push(&mut text, format_args!("complete -c couchdb-howler -l {name}{short}{values} -d {help}\n"));
    }
    text
}

/// Puts a backslash before special characters.
fn escaped(text: &str, special: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if special.contains(&character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// Quotes a text as one word of bash or zsh.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn quoted_for_fish(text: &str) -> String {
    format!("'{}'", escaped(text, &['\'', '\\']))
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("writing to a String cannot fail");
}
