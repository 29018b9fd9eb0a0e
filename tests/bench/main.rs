//! The benchmark: what a notification, a log-in, a line of the feed and an idle connection cost, beside what the least
//! that a server could do costs on the same machine in the same minute.
//!
//! ```text
//!  this process ──orders──▶ side: clients ◀──▶ server      ◀── stand-in for CouchDB (in the side)
//!               ──orders──▶ side: clients ◀──▶ yardstick   ◀── lines of the side
//! ```
//!
//! Times of processors are those of the server's process alone, by the scheduler's count. What is compared is measured in
//! turns, and the median is taken, so that a ratio holds on a machine that is not alone with it.
//!
//! `cargo test` runs this, too: a benchmark that nobody runs stops working. It then looks at counts, never at times.

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
            side::run(serde_json::from_str(&arguments[1]).expect("setups are ours"));
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
