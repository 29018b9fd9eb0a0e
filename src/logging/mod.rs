//! The log: one line for each event on standard error, as text or as JSON.
//!
//! Logging never blocks its caller, since standard error may be a pipe that nobody reads. A caller
//! puts a line into a bounded queue, and a thread of its own writes it. Lines that do not fit, or
//! cannot be written, are dropped and counted. The end of the process waits for the queue for a
//! second at most.
//!
//! ```text
//! caller ──Line──▶ queue ──▶ writer thread: text or JSON ──▶ standard error
//!           full: dropped and counted
//! ```
//!
//! | file | contents |
//! |---|---|
//! | `queue.rs`, `line.rs` | the queue, and the lines in it |
//! | `writer.rs` | the writer thread |
//! | `text.rs`, `json.rs` | the two formats |
//! | `output.rs` | output that never blocks for long |

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::panic;

use log::LevelFilter;

mod json;
mod line;
mod output;
mod queue;
mod text;
mod writer;

pub use output::print_within;
pub use queue::DROPPED_LINES;
pub use writer::Format;

use output::{FLUSH_WITHIN, is_writable};
use queue::Logger;
use writer::Writer;

/// Starts the log. Lines below a level are left out.
///
/// # Errors
/// Returns an error if the writer thread cannot be started, or if a log was started before.
pub fn start(level: LevelFilter, format: Format) -> io::Result<()> {
    let (logger, messages) = Logger::new(level, format == Format::Json);
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let writer = Writer::new(stderr, format)?;
    std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&messages))?;
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
    log::set_max_level(level);
    flush_before_panics();
    Ok(())
}

/// Waits until all lines are written, for a second at most.
pub fn flush() {
    log::logger().flush();
}

/// Prints an error behind all lines of the log, as a line of text in either format. Gives up after
/// a second if standard error does not take it.
pub fn print_error(error: &str) {
    flush();
    print_within(io::stderr(), &format!("couchdb-howler: {error}\n"));
}

/// Makes panics print behind all lines of the log. A report that nobody reads must not keep the
/// process from ending.
fn flush_before_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        flush();
        if is_writable(io::stderr(), Some(FLUSH_WITHIN)) {
            report(info);
        }
    }));
}
