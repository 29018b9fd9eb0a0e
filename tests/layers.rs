//! The sources themselves: imports point down.

use std::path::{Path, PathBuf};

/// What each layer may name of this crate. `demo` stands beside: a small CouchDB, which names what is on the wire.
const ALLOWED: &[(&str, &[&str])] = &[
    ("wire", &["wire"]),
    ("state", &["wire", "state"]),
    ("net", &["wire", "net"]),
    ("server", &["wire", "state", "net", "server"]),
    ("event_loop", &["state", "server", "systemd"]),
    ("systemd", &["state"]),
    ("logging", &["wire"]),
    ("config", &["wire", "state", "logging"]),
    ("check", &["wire", "state", "net", "config", "check"]),
    ("demo", &["wire", "demo"]),
];

/// What no layer but the named ones may name at all.
const KEPT_TO: &[(&str, &[&str])] = &[
    ("mio::", &["net", "server", "event_loop", "systemd", "main"]),
    ("rustls::", &["net", "server", "check"]),
    ("std::env", &["main"]),
    ("Instant::now", &["event_loop"]),
    ("SystemTime::now", &["event_loop", "logging"]),
    ("std::net::Tcp", &["net", "demo", "systemd"]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    entries
        .map(|entry| entry.expect("readable").path())
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

#[test]
fn imports_point_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&root);
    assert!(files.len() > 20, "the sources were found: {files:?}");
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        let text = text.split("#[cfg(test)]\nmod tests").next().expect("there is a first part");
        let inner = file.strip_prefix(&root).expect("below it").with_extension("");
        let layer = inner.iter().next().and_then(|name| name.to_str()).expect("a name").to_owned();
        let allowed = ALLOWED.iter().find(|(name, _)| *name == layer).map(|(_, allowed)| *allowed);
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            for path in code.split("crate::").skip(1) {
                let named: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let macro_or_group = named.is_empty();
                if macro_or_group || allowed.is_some_and(|allowed| !allowed.contains(&&*named)) {
                    wrong.push(format!("{}:{}: {line}", file.display(), number + 1));
                }
            }
            for (what, keepers) in KEPT_TO {
                if code.contains(what) && !keepers.contains(&&*layer) {
                    wrong.push(format!("{}:{}: {line}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "outside the layers:\n{}", wrong.join("\n"));
}
