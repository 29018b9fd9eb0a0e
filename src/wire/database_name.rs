//! The rule for database names.

/// CouchDB's own databases with events. No other name may begin with an underscore.
const SYSTEM: [&str; 3] = ["_global_changes", "_replicator", "_users"];
/// Longest part of a name between slashes, in bytes. CouchDB makes each part a folder.
const MAX_FOLDER: usize = 255;
/// Longest last part of a name, in bytes. CouchDB appends 17 bytes, such as `.1426688392.couch`.
const MAX_FILE: usize = 238;

/// Returns whether CouchDB can have a database of this name. CouchDB is never asked for another
/// name.
///
/// CouchDB's rule is `^[a-z][a-z0-9_$()+/-]*$` (CouchDB manual, `PUT /{db}`).
pub fn is_possible(name: &str) -> bool {
    if !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return SYSTEM.contains(&name);
    }
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'$' | b'(' | b')' | b'+' | b'/' | b'-');
    let (folders, file) = name.rsplit_once('/').unwrap_or(("", name));
    name.bytes().all(allowed) && file.len() <= MAX_FILE && folders.split('/').all(|folder| folder.len() <= MAX_FOLDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_couchdbs_rule() {
        let long = "a".repeat(MAX_FILE);
        let nested = format!("{}/{long}", "a".repeat(MAX_FOLDER));
        for name in ["a", "garden", "a0_$()+/-", "a/b", "a/", "a//b", "_users", "_replicator", "_global_changes", &long]
        {
            assert!(is_possible(name), "{name}");
        }
        assert!(is_possible(&nested));
        for name in ["", "A", "aB", "0a", "$a", "/a", "..", "a.b", "a..", "../_users", "..%2F_users", "a%2Fb", "a b"] {
            assert!(!is_possible(name), "{name}");
        }
        for name in ["_", "_dbs", "_users/", "_Users", "a\n", "a\0", "é", "aé", "favicon.ico", "a?b", "a#b", "a\\b"] {
            assert!(!is_possible(name), "{name}");
        }
        assert!(!is_possible(&format!("{long}a")) && !is_possible(&format!("a{nested}")));
    }
}
