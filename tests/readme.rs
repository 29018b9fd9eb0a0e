//! Checks the README and the manual against options, limits, dependencies and fuzz targets, so that
//! they stay true.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use couchdb_howler::config::{OPTIONS, OptionRow, Takes};
use couchdb_howler::state::metrics::{CloseReason, Metrics};

const README: &str = include_str!("../README.md");
const CONFIGURATION: &str = include_str!("../src/manual/configuration.md");
const LIMITS: &str = include_str!("../src/manual/limits.md");
const DEVELOPMENT: &str = include_str!("../src/manual/development.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the text of a page below a heading, up to the next one of its level.
fn section(page: &'static str, heading: &str) -> &'static str {
    let (_, rest) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let level = heading.split(' ').next().expect("marks in front");
    rest.split(&format!("\n{level} ")).next().expect("text")
}

/// The cells of all tables in a text, row by row.
fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    lines.map(|line| line.split(" | ").map(str::trim).collect())
}

/// Returns the texts between backticks.
fn quoted(cell: &'static str) -> impl Iterator<Item = &'static str> {
    cell.split('`').skip(1).step_by(2)
}

/// Returns the row of an option, which has its variables in the second cell.
fn row_of(option: &OptionRow, text: &'static str) -> Option<Vec<&'static str>> {
    let flag = format!("--{}", option.name);
    rows(text).find(|cells| {
        let named = quoted(cells[0]).any(|word| word.split(' ').next() == Some(&flag));
        named && cells.len() >= 4 && quoted(cells[1]).any(|word| word == option.variable())
    })
}

/// The options of the section `Limits`.
fn limits() -> impl Iterator<Item = &'static OptionRow> {
    let first = OPTIONS.iter().position(|row| row.heading == Some("Limits")).expect("there are some");
    let more = OPTIONS[first + 1..].iter().take_while(|row| row.heading.is_none());
    OPTIONS[first..=first].iter().chain(more).chain(OPTIONS.iter().filter(|row| row.name == "login_queue"))
}

#[test]
fn every_option_stands_there_with_its_variables_and_its_default() {
    for option in OPTIONS {
        let name = option.name;
        let cells = row_of(option, CONFIGURATION).or_else(|| row_of(option, LIMITS));
        let cells = cells.unwrap_or_else(|| panic!("no row of a table documents --{name}"));
        let value = match &option.takes {
            Takes::Switch => None,
            Takes::Choice(_) => Some(String::new()),
            Takes::Number(placeholder, _) | Takes::Text(placeholder, _) => Some((*placeholder).to_owned()),
        };
        let flag = quoted(cells[0]).find(|word| word.split(' ').next() == Some(&format!("--{name}")));
        let shown = flag.and_then(|flag| flag.split_once(' ')).map(|(_, value)| value);
        match (value, shown) {
            (None, None) => {}
            (Some(value), Some(shown)) if value.is_empty() || value == shown => {}
            other => panic!("--{name} takes {other:?}"),
        }
        let short = option.short.map(|letter| format!("-{letter}"));
        assert!(short.is_none_or(|short| quoted(cells[0]).any(|word| word == short)), "--{name}: {}", cells[0]);
        let bare = option.bare_variable.then(|| name.to_owned());
        for variable in [option.file_variable(), bare].into_iter().flatten() {
            assert!(quoted(cells[1]).any(|word| word == variable), "--{name}: no {variable} in {}", cells[1]);
        }
        let default = cells[2].trim_matches('`');
        match option.default {
            Some(expected) => assert_eq!(default, expected, "--{name}"),
            None => assert!(["–", "off", "all", "*"].contains(&default), "--{name}: {default}"),
        }
    }
}

#[test]
fn the_options_of_the_readme_are_those_of_the_manual() {
    let text = section(README, "## Options that everybody sets");
    let named: Vec<_> = OPTIONS.iter().filter_map(|option| Some((option, row_of(option, text)?))).collect();
    assert!(named.len() >= 5, "{}", named.len());
    for (option, cells) in named {
        let manual = row_of(option, CONFIGURATION).unwrap_or_else(|| panic!("--{}", option.name));
        assert_eq!(cells[..3], manual[..3], "--{}", option.name);
    }
}

#[test]
fn every_limit_stands_there_with_what_happens_and_its_counter() {
    let mut counters: BTreeSet<String> = CloseReason::ALL.iter().map(|reason| snake(reason.name())).collect();
    Metrics::default().for_each_counter(|name, _, _| counters.extend([name.to_owned()]));
    let text = section(LIMITS, "## Options");
    for option in limits() {
        let cells = row_of(option, text).unwrap_or_else(|| panic!("limits.md has no row of --{}", option.name));
        assert_eq!(cells.len(), 6, "{cells:?}");
        assert!(!cells[3].is_empty() && !cells[4].is_empty(), "{cells:?}");
        assert!(quoted(cells[5]).count() > 0, "--{} has no counter", option.name);
        for counter in quoted(cells[5]) {
            assert!(counters.contains(counter), "--{}: {counter} is none", option.name);
        }
    }
}

/// `LikeThis` as `like_this`.
fn snake(name: &str) -> String {
    name.char_indices().fold(String::new(), |mut text, (at, letter)| {
        if letter.is_ascii_uppercase() && at > 0 {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
        text
    })
}

/// The crates that cargo sees, each as its name and version.
fn tree(edges: &str) -> BTreeSet<String> {
    let options = ["--target", "x86_64-unknown-linux-musl", "--prefix", "none", "--no-dedupe", "--locked", "--offline"];
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--edges", edges])
        .args(options)
        .current_dir(root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).expect("text");
    let name_and_version = |line: &str| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        (name != env!("CARGO_PKG_NAME")).then(|| format!("{name} {version}"))
    };
    lines.lines().filter_map(name_and_version).collect()
}

/// The crates that Cargo.toml asks for.
fn asked_for() -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("there is one");
    let (_, rest) = manifest.split_once("\n[dependencies]\n").expect("it has some");
    let lines = rest.lines().take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())).collect()
}

#[test]
fn every_dependency_stands_there_with_its_version() {
    let text = section(DEVELOPMENT, "## Dependencies");
    let listed: Vec<_> = rows(text).filter(|cells| cells[0].starts_with('`')).collect();
    assert!(listed.iter().all(|cells| cells.len() == 3 && !cells[2].is_empty()), "{listed:?}");
    let named: BTreeSet<String> = listed.iter().map(|cells| cells[0].trim_matches('`').to_owned()).collect();
    assert_eq!(named, asked_for());
    let mut lists =
        text.split("\n\n").filter(|part| part.ends_with('.') && part.split(' ').nth(1).is_some_and(is_version));
    let mut list = || -> BTreeSet<String> {
        let part = lists.next().expect("a list").trim_end_matches('.').replace('\n', " ");
        part.split(", ").map(str::to_owned).collect()
    };
    let mut in_binary = list();
    in_binary.extend(listed.iter().map(|cells| format!("{} {}", cells[0].trim_matches('`'), cells[1])));
    assert_eq!(in_binary, tree("normal,no-proc-macro"));
    let all = tree("normal,build");
    assert_eq!(list(), all.difference(&in_binary).cloned().collect());
}

fn is_version(word: &str) -> bool {
    let word = word.trim_end_matches([',', '.']);
    word.split('.').count() == 3 && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

#[test]
fn every_fuzz_target_stands_there() {
    let listed = rows(section(DEVELOPMENT, "## Fuzzing")).filter(|cells| cells[0].starts_with('`') && cells.len() == 3);
    let listed: BTreeSet<String> = listed.map(|cells| cells[0].trim_matches('`').to_owned()).collect();
    let files = fs::read_dir(root().join("fuzz/fuzz_targets")).expect("there are some");
    let files = files.map(|file| file.expect("it can be read").path());
    let targets = files.map(|file| file.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    assert_eq!(listed, targets);
}
