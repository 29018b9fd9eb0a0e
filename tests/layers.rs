//! The sources themselves: imports point down and in no cycle, and the owners of the server do not
//! know each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The modules that each layer may import. `demo` stands beside: a small CouchDB, which names what
/// is on the wire.
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

/// Names that only the given layers may use.
const KEPT_TO: &[(&str, &[&str])] = &[
    ("mio::", &["net", "server", "event_loop", "systemd", "main"]),
    ("rustls::", &["net", "server", "check"]),
    ("std::env", &["main"]),
    ("Instant::now", &["event_loop"]),
    ("SystemTime::now", &["event_loop", "logging"]),
    ("std::net::Tcp", &["net", "demo", "systemd"]),
];

/// Most lines of code in a file, without comments, blank lines and tests.
const LONGEST: usize = 500;

/// The owners of the server: folder and struct.
const OWNERS: &[(&str, &str)] =
    &[("connections", "Connections"), ("sessions", "Sessions"), ("databases", "Databases"), ("upstream", "Upstream")];

/// Files of the server that all owners may import.
const SHARED: &[&str] = &["context", "ids", "purpose", "settings"];

/// A file of the sources: its path below `src` without `.rs`, and its code without comments and
/// tests.
#[derive(Debug)]
struct Source {
    path: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let text = text.split("#[cfg(test)]\nmod tests {").next().expect("there is a first part");
        let mut code = String::new();
        for line in text.lines() {
            code.push_str(line.split("//").next().unwrap_or(""));
            code.push('\n');
        }
        Self { path: path.into(), code }
    }

    /// Returns the path of the module that the file holds.
    fn module(&self) -> Vec<&str> {
        let mut module: Vec<_> = self.path.split('/').collect();
        if matches!(module.last(), Some(&"mod" | &"lib")) {
            module.pop();
        }
        module
    }

    /// Returns the modules that the file declares, those of tests apart.
    fn children(&self) -> (Vec<&str>, Vec<&str>) {
        let (mut children, mut of_tests, mut is_test) = (Vec::new(), Vec::new(), false);
        for line in self.code.lines().map(str::trim) {
            let declared = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
            if let Some((_, name)) = declared.filter(|(before, _)| before.is_empty() || before.starts_with("pub")) {
                if is_test { of_tests.push(name) } else { children.push(name) }
            }
            is_test = line == "#[cfg(test)]";
        }
        (children, of_tests)
    }

    /// Returns every path in the code that begins with a module, those of `use` trees one by one.
    fn paths(&self) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        let mut rest = &*self.code;
        while let Some(at) = rest.find("use ") {
            let is_keyword = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let Some(end) = rest[at..].find(';') else { break };
            if is_keyword {
                expand(&rest[at + 4..at + end], &[], &mut paths);
            }
            rest = &rest[at + if is_keyword { end } else { 4 }..];
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        for chain in self.code.split(|c: char| !is_word(c) && c != ':') {
            let segments: Vec<_> = chain.split("::").filter(|segment| !segment.is_empty()).collect();
            if segments.len() > 1 {
                paths.push(segments.into_iter().map(Into::into).collect());
            }
        }
        paths
    }
}

/// Adds the paths of a `use` tree behind a prefix.
fn expand(tree: &str, prefix: &[String], paths: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let (before, group) = tree.split_once('{').unwrap_or((tree, ""));
    let mut path = prefix.to_vec();
    let segments = before.split("::").map(|segment| segment.split(" as ").next().unwrap_or("").trim());
    path.extend(segments.filter(|segment| !segment.is_empty()).map(String::from));
    if group.is_empty() {
        paths.push(path);
        return;
    }
    let group = group.rsplit_once('}').map_or(group, |(group, _)| group);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !group[start..at].trim().is_empty() {
                    expand(&group[start..at], &path, paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Returns the modules that only tests have.
fn test_modules(sources: &[Source]) -> BTreeSet<Vec<&str>> {
    let mut modules = BTreeSet::new();
    for source in sources {
        let (_, of_tests) = source.children();
        modules.extend(of_tests.into_iter().map(|child| [&*source.module(), &[child]].concat()));
    }
    modules
}

/// Returns the files that each file imports.
fn imports(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let of_tests = test_modules(sources);
    let is_test = |module: &[&str]| (1..=module.len()).any(|length| of_tests.contains(&module[..length]));
    let modules: BTreeMap<Vec<&str>, &str> =
        sources.iter().map(|source| (source.module(), &*source.path)).filter(|(module, _)| !is_test(module)).collect();
    let mut imports = BTreeMap::new();
    for source in sources {
        let module = source.module();
        if is_test(&module) {
            continue;
        }
        let (children, _) = source.children();
        let imported = imports.entry(&*source.path).or_insert_with(BTreeSet::new);
        for path in source.paths() {
            let mut path = path.iter().map(|segment| &**segment).peekable();
            let mut base = match path.peek() {
                Some(&"crate") => Vec::new(),
                Some(&("self" | "super")) => module.clone(),
                Some(child) if children.contains(child) => module.clone(),
                _ => continue,
            };
            for segment in path {
                match segment {
                    "crate" | "self" => {}
                    "super" => {
                        base.pop();
                    }
                    _ if modules.contains_key(&*[&*base, &[segment]].concat()) => base.push(segment),
                    _ => break,
                }
            }
            if let Some(target) = modules.get(&base).filter(|_| base != module) {
                imported.insert(*target);
            }
        }
    }
    imports
}

/// Returns groups of files that import each other in a cycle.
fn cycles<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<BTreeSet<&'a str>> {
    let reach = |from: &'a str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            let new = imports.get(file).into_iter().flatten().filter(|file| seen.insert(**file));
            open.extend(new.copied().collect::<Vec<_>>());
        }
        seen
    };
    let reached: BTreeMap<_, _> = imports.keys().map(|file| (*file, reach(file))).collect();
    let mut cycles = Vec::new();
    for (file, others) in &reached {
        if others.contains(file) {
            let cycle: BTreeSet<_> = others.iter().copied().filter(|other| reached[other].contains(file)).collect();
            if !cycles.contains(&cycle) {
                cycles.push(cycle);
            }
        }
    }
    cycles
}

/// Returns what an owner of the server names although it must not know it.
fn crossings(sources: &[Source]) -> Vec<String> {
    let (mut crossings, imports) = (Vec::new(), imports(sources));
    for source in sources {
        let module = source.module();
        let Some((folder, owner)) = OWNERS.iter().find(|(folder, _)| module.starts_with(&["server", folder])) else {
            continue;
        };
        for target in imports.get(&*source.path).into_iter().flatten() {
            let rest = target.strip_prefix("server/").filter(|rest| !rest.starts_with(&format!("{folder}/")));
            if rest.is_some_and(|rest| !SHARED.contains(&rest)) {
                crossings.push(format!("{}: imports {target}", source.path));
            }
        }
        let body = source.code.split_once(&format!("struct {owner} {{")).and_then(|(_, rest)| rest.split_once("\n}"));
        for line in body.into_iter().flat_map(|(body, _)| body.lines()) {
            if line.trim_start().starts_with("pub") {
                crossings.push(format!("{}: has a field that is not private: {line}", source.path));
            }
        }
    }
    crossings
}

/// Returns the number of lines of code, without comments and blank lines.
fn code_lines(source: &Source) -> usize {
    source.code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Returns the sources below a folder.
fn sources(root: &Path) -> Vec<Source> {
    let (mut sources, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder exists") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("readable");
                let inner = path.strip_prefix(root).expect("below it").with_extension("");
                sources.push(Source::new(inner.to_str().expect("UTF-8"), &text));
            }
        }
    }
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(sources.len() > 20, "the sources are found: {sources:?}");
    sources
}

/// Returns the sources of the crate.
fn own_sources() -> Vec<Source> {
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for source in own_sources() {
        let layer = source.path.split('/').next().expect("a name");
        let allowed = ALLOWED.iter().find(|(name, _)| *name == layer).map(|(_, allowed)| *allowed);
        for (number, line) in source.code.lines().enumerate() {
            for path in line.split("crate::").skip(1) {
                let named: String = path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let is_macro_or_group = named.is_empty();
                if is_macro_or_group || allowed.is_some_and(|allowed| !allowed.contains(&&*named)) {
                    wrong.push(format!("{}:{}: {line}", source.path, number + 1));
                }
            }
            for (what, keepers) in KEPT_TO {
                if line.contains(what) && !keepers.contains(&layer) {
                    wrong.push(format!("{}:{}: {line}", source.path, number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "outside the layers:\n{}", wrong.join("\n"));
}

#[test]
fn imports_form_no_cycle() {
    // `main` is a crate of its own.
    let sources: Vec<_> = own_sources().into_iter().filter(|source| source.path != "main").collect();
    let cycles = cycles(&imports(&sources));
    assert!(cycles.is_empty(), "files that import each other in a cycle: {cycles:#?}");
}

#[test]
fn owners_do_not_know_each_other() {
    let crossings = crossings(&own_sources());
    assert!(crossings.is_empty(), "owners that are not separate:\n{}", crossings.join("\n"));
}

#[test]
fn files_are_short() {
    let sources = own_sources();
    let of_tests = test_modules(&sources);
    let is_long = |source: &&Source| code_lines(source) > LONGEST && !of_tests.contains(&source.module());
    let long: Vec<_> = sources.iter().filter(is_long).map(|source| &source.path).collect();
    assert!(long.is_empty(), "files of more than {LONGEST} lines of code: {long:?}");
}

#[test]
fn the_checks_find_what_they_look_for() {
    let made_up = |files: &[(&str, &str)]| files.iter().map(|(path, text)| Source::new(path, text)).collect::<Vec<_>>();
    let files = made_up(&[
        ("lib", "pub mod a;\nmod b;\n"),
        ("a/mod", "mod low;\nmod high;\nuse low::{self, Low as L};\n"),
        ("a/low", "pub struct Low; // crate::b\n"),
        ("a/high", "use super::{Part, low::{Low}};\nfn f() { crate::b::g() }\n"),
        ("b", "#[cfg(test)]\nmod tests;\npub fn g() {}\n"),
        ("b/tests", "use super::g;\nuse crate::a::high;\n"),
    ]);
    let found = imports(&files);
    assert_eq!(found["a/high"], BTreeSet::from(["a/low", "a/mod", "b"]));
    assert!(!found.contains_key("b/tests"), "tests may import what they test");
    assert_eq!(cycles(&found), [] as [BTreeSet<&str>; 0]);

    let files = made_up(&[
        ("a/mod", "mod one;\nmod two;\nuse one::One;\n"),
        ("a/one", "use crate::a::two::Two;\n"),
        ("a/two", "use super::Part;\n"),
    ]);
    assert_eq!(cycles(&imports(&files)), [BTreeSet::from(["a/mod", "a/one", "a/two"])]);

    let files = made_up(&[
        ("server/sessions/mod", "pub(super) struct Sessions {\n    table: u8,\n}\nuse crate::server::ids::Handle;\n"),
        ("server/login", "use super::Server;\n"),
    ]);
    assert_eq!(crossings(&files), [] as [String; 0]);
    for (text, what) in [
        ("use super::Server;\n", "imports server/mod"),
        ("use crate::server::databases::Databases;\n", "imports server/databases/mod"),
        ("use crate::server::login::log_in;\n", "imports server/login"),
        ("use super::login;\n", "imports server/login"),
        ("struct Sessions {\n    pub(super) table: u8,\n}\n", "not private"),
    ] {
        let found = crossings(&made_up(&[
            ("server/sessions/mod", text),
            ("server/login", ""),
            ("server/mod", ""),
            ("server/databases/mod", ""),
        ]));
        assert!(found.len() == 1 && found[0].contains(what), "{text}: {found:?}");
    }

    let long = "let a = 1;\n".repeat(LONGEST + 1);
    assert!(code_lines(&Source::new("a", &long)) > LONGEST);
    assert_eq!(code_lines(&Source::new("a", "// a\n\nfn f() {}\n#[cfg(test)]\nmod tests { }\n")), 1);
}
