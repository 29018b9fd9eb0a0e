//! Suggestions for misspelled options and commands.

use super::table::{COMMANDS, CommandRow, OPTIONS, OptionRow};

/// Returns the option that a wrong name probably stands for.
pub(super) fn nearest_option(name: &str) -> Option<&'static OptionRow> {
    let begun = |row: &&OptionRow| name.len() > 1 && row.name.starts_with(name);
    let near = || OPTIONS.iter().map(|row| (edits(row.name, name), row)).min_by_key(|(edits, _)| *edits);
    let limit = if name.len() < 5 { 1 } else { 2 };
    OPTIONS
        .iter()
        .filter(begun)
        .min_by_key(|row| row.name.len())
        .or_else(|| near().filter(|(edits, _)| *edits <= limit).map(|(_, row)| row))
}

/// Returns the command that a wrong word probably stands for.
pub(super) fn nearest_command(word: &str) -> Option<&'static CommandRow> {
    let word = word.to_ascii_lowercase().replace(['-', '_'], "");
    COMMANDS.iter().find(|row| edits(row.name, &word) <= 2)
}

/// Returns the Levenshtein distance of two words, in bytes.
fn edits(left: &str, right: &str) -> usize {
    let mut costs: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut costs[0], i + 1);
        for (j, r) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(l != r);
            diagonal = costs[j + 1];
            costs[j + 1] = replaced.min(diagonal + 1).min(costs[j] + 1);
        }
    }
    costs[right.len()]
}
