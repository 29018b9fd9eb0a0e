//! Benchmark of a notification, a login, a line of the feed and an idle connection. A yardstick,
//! which does the least that a server could do, runs on the same machine at the same time.
//!
//! ```text
//!  this process ──orders──▶ side: clients ◀──▶ server      ◀── stand-in for CouchDB (in the side)
//!               ──orders──▶ side: clients ◀──▶ yardstick   ◀── lines of the side
//! ```
//!
//! CPU times are those of the server process alone, as counted by the scheduler. Server and
//! yardstick are measured in turns and the medians compared, so that a ratio holds on a machine
//! with other load.
//!
//! `cargo test` also runs this program so that it keeps working. It then checks counts, never
//! times.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock and sleeps")]
#![allow(unreachable_pub, missing_docs, reason = "one crate that nobody links to")]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are rounded anyway"
)]

mod attacks;
mod clients;
mod couchdb;
mod dialogue;
mod frames;
mod lines;
mod measure;
mod options;
mod parts;
mod process;
mod remote;
mod report;
mod server;
mod side;
mod yardstick;

use std::process::ExitCode;
use std::time::Instant;

use options::Options;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("side") => {
            side::run(serde_json::from_str(&arguments[1]).expect("the parent wrote the setup"));
            return ExitCode::SUCCESS;
        }
        Some("yardstick") => yardstick::run(),
        _ => {}
    }
    let options = match Options::parse(lexopt::Parser::from_env()) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    if options.left_out {
        return ExitCode::SUCCESS;
    }
    let began = Instant::now();
    let report = parts::run(&options);
    println!("\n{}\nIn {:.0} s.", report.table(), began.elapsed().as_secs_f64());
    if options.quick && options.only.is_empty() {
        parts::assert_complete(&report, &options);
    }
    match options.json.map(|path| report.write_json(&path)) {
        Some(Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
