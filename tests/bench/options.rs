//! The command line, see `cargo bench -- --help`.

use std::path::{Path, PathBuf};

use lexopt::prelude::{Long, Value, ValueExt};

/// The output of `--help`.
const HELP: &str = "\
cargo bench [-- OPTIONS]

  --clients LIST   numbers of clients (1000,5000,15000)
  --only LIST      some of: notify, latency, burst, memory, storm, tls, idle, feed, many, start, attack
  --json FILE      also write all figures to a file
  --binary PATH    measure another build of the server
  --node           also measure a server on socket.io 2 (tests/clients/install.sh)
  --quick          run for a few seconds, only to check that all parts work
  --help           print this text";

/// The names of all parts.
pub const PARTS: [&str; 11] =
    ["notify", "latency", "burst", "memory", "storm", "tls", "idle", "feed", "many", "start", "attack"];

/// The parsed command line.
pub struct Options {
    pub clients: Vec<usize>,
    pub only: Vec<String>,
    pub json: Option<PathBuf>,
    pub binary: PathBuf,
    pub node: bool,
    pub quick: bool,
    /// Whether the filters of `cargo test` exclude the benchmark.
    pub left_out: bool,
}

impl Options {
    /// Parses the command line.
    ///
    /// # Errors
    ///
    /// Returns the text to print, also for `--help`.
    pub fn parse(mut arguments: lexopt::Parser) -> Result<Self, String> {
        let mut options = Self {
            clients: Vec::new(),
            only: Vec::new(),
            json: None,
            binary: env!("CARGO_BIN_EXE_couchdb-howler").into(),
            node: false,
            quick: false,
            left_out: false,
        };
        let (mut benched, mut filters) = (false, Vec::new());
        while let Some(argument) = arguments.next().map_err(|error| error.to_string())? {
            match argument {
                Long("clients") => options.clients = numbers(&value(&mut arguments)?)?,
                Long("only") => options.only = parts(&value(&mut arguments)?)?,
                Long("json") => options.json = Some(value(&mut arguments)?.into()),
                Long("binary") => options.binary = value(&mut arguments)?.into(),
                Long("node") => options.node = true,
                Long("quick") => options.quick = true,
                Long("bench") => benched = true,
                Long("help") => return Err(HELP.to_owned()),
                // `cargo test` passes these to every harness; they have no meaning here.
                Long("nocapture" | "no-capture" | "exact" | "show-output" | "include-ignored") => {}
                Long("test-threads" | "skip" | "color" | "format") => drop(value(&mut arguments)?),
                // A filter of `cargo test`.
                Value(name) if !benched => filters.push(name.to_string_lossy().into_owned()),
                other => return Err(other.unexpected().to_string()),
            }
        }
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/node_modules/socket.io-v2-server");
        if options.node && !library.is_dir() {
            return Err("--node needs socket.io, which tests/clients/install.sh installs".to_owned());
        }
        // cargo passes `--bench` for `cargo bench` only. A test run tries all parts without exact
        // results.
        options.quick |= !benched;
        options.left_out = !filters.is_empty() && !filters.iter().any(|filter| "bench".contains(&**filter));
        if options.clients.is_empty() {
            options.clients = if options.quick { vec![10, 50] } else { vec![1_000, 5_000, 15_000] };
        }
        Ok(options)
    }

    pub fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

fn value(arguments: &mut lexopt::Parser) -> Result<String, String> {
    arguments.value().and_then(ValueExt::string).map_err(|error| error.to_string())
}

fn numbers(text: &str) -> Result<Vec<usize>, String> {
    let number = |text: &str| text.parse().ok().filter(|number| (1..=18_000).contains(number));
    let numbers: Option<Vec<usize>> = text.split(',').map(number).collect();
    numbers.ok_or_else(|| format!("--clients takes numbers from 1 to 18000, separated by commas, not {text}"))
}

fn parts(text: &str) -> Result<Vec<String>, String> {
    match text.split(',').find(|part| !PARTS.contains(part)) {
        Some(unknown) => Err(format!("--only takes some of {}, not {unknown}", PARTS.join(", "))),
        None => Ok(text.split(',').map(str::to_owned).collect()),
    }
}
