//! The words of documentation, comments, names and messages, as far as a program can judge them.
//! The style itself is in `.github/CONTRIBUTING.md`.

use std::path::{Path, PathBuf};

/// Words that no sentence or doc comment opens with: such sentences hide their subject.
const OPENINGS: &[&str] = &["Who", "Whoever", "Whose", "Whom", "Of", "What", "Whatever"];

/// Words and phrases that stand nowhere, with the term for each.
const WORDS: &[(&str, &str)] = &[
    ("anew", "again, new"),
    ("thereby", "so"),
    ("as ever", "still"),
    ("at hand", "current, available"),
    ("told", "notified, logged, answered"),
    ("tell", "notify, log, answer"),
    ("tells", "notifies, logs, answers"),
    ("telling", "notifying, logging, answering"),
    ("untold", "not notified"),
    ("farewell", "shutdown, drain"),
    ("newcomer", "unauthenticated client"),
    ("newcomers", "unauthenticated clients"),
    ("log-ins", "logins"),
    ("look-up", "lookup"),
    ("look-ups", "lookups"),
];

/// Exceptions: names that others rely on, and the one other sense of a word.
const EXCEPTIONS: &[&str] = &["tell apart", "tells apart", "told apart", "max newcomers"];

/// Most columns of a line of Markdown or of a comment.
const COLUMNS: usize = 100;

/// A paragraph of prose: the line on which it begins, and its text in one line.
struct Paragraph {
    line: usize,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The files below a folder with one of these endings, without those of others.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if path.is_dir() && !["node_modules", "target", "corpus", "artifacts"].contains(&name) {
            found.extend(files(&path, endings));
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Replaces code between backticks by spaces, so that columns stay.
fn without_code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let prose = parts.map(|(number, part)| if number % 2 == 0 { part.to_owned() } else { " ".repeat(part.len()) });
    prose.collect::<Vec<_>>().join(" ")
}

/// Splits lines of prose, each with its number, into paragraphs: items of lists, cells of tables
/// and headings are paragraphs of their own, and fenced code is left out.
fn paragraphs<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Vec<Paragraph> {
    let mut found: Vec<Paragraph> = Vec::new();
    let (mut fenced, mut open, mut next) = (false, false, 0);
    for (line, text) in lines {
        let text = text.trim();
        if text.starts_with("```") || text.starts_with("~~~") {
            fenced = !fenced;
            open = false;
        } else if fenced || text.is_empty() {
            open = false;
        } else if text.starts_with('|') {
            let cells = text.split('|').map(str::trim).filter(|cell| !cell.is_empty());
            found.extend(cells.map(|cell| Paragraph { line, text: cell.to_owned() }));
            open = false;
        } else {
            let item = text.trim_start_matches(|c: char| c.is_ascii_digit() || "-*.#> ".contains(c));
            let begins = text.starts_with(['-', '*', '#', '>']) || text.starts_with(|c: char| c.is_ascii_digit());
            if open && !begins && line == next {
                let last = found.last_mut().expect("a paragraph is open");
                last.text.push(' ');
                last.text.push_str(text);
            } else {
                found.push(Paragraph { line, text: item.to_owned() });
            }
            open = !text.starts_with('#');
        }
        next = line + 1;
    }
    found
}

/// Returns the comment in a line of Rust or JavaScript, if the line holds nothing else.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start();
    let text = text.strip_prefix("//!").or_else(|| text.strip_prefix("///")).or_else(|| text.strip_prefix("//"));
    text.or_else(|| line.trim_start().strip_prefix("* "))
}

/// The first words of the sentences in a paragraph.
fn openings(text: &str) -> Vec<String> {
    let prose = without_code(text);
    let mut sentence_begins = true;
    let mut found = Vec::new();
    for word in prose.split_whitespace() {
        let bare: String = word.trim_start_matches(['(', '"', '*', '_']).to_owned();
        if sentence_begins {
            found.push(bare.trim_end_matches(|c: char| !c.is_alphanumeric()).to_owned());
        }
        sentence_begins = bare.ends_with(['.', '!', '?']) || bare.ends_with(".)");
    }
    found
}

fn bad_openings(name: &str, paragraphs: &[Paragraph]) -> Vec<String> {
    let mut wrong = Vec::new();
    for Paragraph { line, text } in paragraphs {
        for word in openings(text) {
            if OPENINGS.contains(&word.as_str()) {
                wrong.push(format!("{name}:{line}: a sentence opens with \"{word}\": {text}"));
            }
        }
    }
    wrong
}

/// Splits a line into words in small letters; names in code are split at underscores and capitals.
fn words(line: &str) -> String {
    let mut spaced = String::from(" ");
    let mut before = ' ';
    for c in line.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            spaced.push(' ');
        }
        spaced.extend(if c.is_alphanumeric() || c == '-' { c } else { ' ' }.to_lowercase());
        before = c;
    }
    spaced.push(' ');
    format!(" {} ", spaced.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn bad_words(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut spaced = words(line);
        for exception in EXCEPTIONS {
            spaced = spaced.replace(exception, "");
        }
        for (word, instead) in WORDS {
            if spaced.contains(&format!(" {word} ")) {
                wrong.push(format!("{name}:{}: \"{word}\" (instead: {instead}): {}", number + 1, line.trim()));
            }
        }
    }
    wrong
}

/// Finds lines of prose that are too long. Tables, fenced code and lines that cannot be broken may be longer.
fn long_lines(name: &str, text: &str, prose: impl Fn(&str) -> bool) -> Vec<String> {
    let marks = ["| ", "://", "](", "{\"", "      "];
    let mut fenced = false;
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        fenced ^= comment(line).unwrap_or(line).trim_start().starts_with("```");
        let is_long = prose(line) && line.chars().count() > COLUMNS;
        if is_long && !fenced && !marks.iter().any(|mark| line.contains(mark)) {
            wrong.push(format!("{name}:{}: over {COLUMNS} columns: {line}", number + 1));
        }
    }
    wrong
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).expect("below it").display().to_string()
}

/// The faults of a Markdown file.
fn judge_markdown(name: &str, text: &str) -> Vec<String> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    let mut fenced = false;
    let prose: String = text
        .lines()
        .map(|line| {
            fenced ^= line.trim_start().starts_with("```");
            if fenced { "\n".to_owned() } else { without_code(line) + "\n" }
        })
        .collect();
    let mut wrong = bad_openings(name, &paragraphs(lines));
    wrong.extend(bad_words(name, &prose));
    wrong.extend(long_lines(name, &prose, |_| true));
    wrong
}

/// The faults of a source file: the openings of its comments, and the words of all of it.
fn judge_source(name: &str, text: &str) -> Vec<String> {
    let lines = text.lines().enumerate().filter_map(|(number, line)| Some((number + 1, comment(line)?)));
    let mut wrong = bad_openings(name, &paragraphs(lines));
    wrong.extend(bad_words(name, text));
    wrong.extend(long_lines(name, text, |line| comment(line).is_some()));
    wrong
}

#[test]
fn sentences_have_subjects_and_words_are_the_terms() {
    let mut wrong = Vec::new();
    let mut judged = 0;
    for folder in ["src", "tests", "fuzz/fuzz_targets", "fuzz/src", ".github"] {
        for path in files(&root().join(folder), &[".rs", ".js", ".mjs", ".cjs", ".ts", ".cts", ".md"]) {
            let text = std::fs::read_to_string(&path).expect("readable");
            let name = short(&path);
            if name == "tests/words.rs" || name == ".github/CONTRIBUTING.md" {
                continue; // they name the words that are not to be used
            }
            judged += 1;
            let is_page = path.extension().is_some_and(|extension| extension == "md");
            wrong.extend(if is_page { judge_markdown(&name, &text) } else { judge_source(&name, &text) });
        }
    }
    wrong.extend(judge_markdown("README.md", include_str!("../README.md")));
    assert!(judged > 200, "the files were found: {judged}");
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_check_of_words_finds_faults() {
    let source =
        "/// Who may read it.\nfn was_told() {}\n// It goes on. What\n// is left waits.\nlet open = \"What?\";\n";
    let found = judge_source("a.rs", source);
    let starts =
        ["a.rs:1: a sentence opens with \"Who\"", "a.rs:3: a sentence opens with \"What\"", "a.rs:2: \"told\""];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for start in starts {
        assert!(found.iter().any(|fault| fault.starts_with(start)), "{start}: {found:#?}");
    }
    let page = format!(
        "# What it is\n\n| a | Whose |\n\nRead it. Of those\nall. `told`\n\n```\ntold\n```\n{}\n",
        "x ".repeat(60)
    );
    let found = judge_markdown("a.md", &page);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(judge_markdown("a.md", "It reads.\n\n- The server. `What` is a word.\n").is_empty());
}
