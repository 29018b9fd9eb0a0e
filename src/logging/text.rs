//! Lines as text, by `simple_logger`.
//!
//! `simple_logger` prints with `eprintln!`, which panics if standard error is closed or full, and a
//! panic ends the server. So it prints into a file in memory that replaces standard error for that
//! moment, and the writer thread writes the content of the file. Nothing else prints in that
//! moment, since only this thread writes to standard error.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Seek as _};
use std::os::unix::fs::FileExt as _;

use log::{LevelFilter, Log as _, Record};
use rustix::fs::MemfdFlags;
use rustix::stdio::dup2_stderr;
use simple_logger::SimpleLogger;

use super::line::Line;

/// The back end for text.
pub(super) struct Text {
    logger: SimpleLogger,
    /// File in memory that it prints to.
    buffer: File,
}

impl Text {
    /// Creates a back end without colors, whose code is not worth its size in the binary.
    pub(super) fn new() -> io::Result<Self> {
        // The front end has filtered the lines by level.
        let logger = SimpleLogger::new().with_level(LevelFilter::Trace).with_utc_timestamps();
        let buffer = File::from(rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC)?);
        Ok(Self { logger, buffer })
    }

    /// Appends a line with its line feed. `stderr` is a duplicate of standard error.
    pub(super) fn write_line(&mut self, out: &mut Vec<u8>, line: &Line, stderr: &File) -> io::Result<()> {
        self.buffer.rewind()?;
        dup2_stderr(&self.buffer)?;
        let message = one_line(&line.message);
        let mut record = Record::builder();
        record.level(line.level).target(&line.target);
        self.logger.log(&record.args(format_args!("{message}")).build());
        dup2_stderr(stderr)?;
        let length = usize::try_from(self.buffer.stream_position()?).map_err(io::Error::other)?;
        let start = out.len();
        out.resize(start + length, 0);
        self.buffer.read_exact_at(&mut out[start..], 0)
    }
}

/// Escapes control characters, so that a message is one line and does not move the cursor of a
/// terminal.
fn one_line(message: &str) -> Cow<'_, str> {
    if !message.contains(char::is_control) {
        return message.into();
    }
    let mut line = String::with_capacity(message.len() + 16);
    for letter in message.chars() {
        if letter.is_control() { line.extend(letter.escape_default()) } else { line.push(letter) }
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_control_characters() {
        assert_eq!(one_line("a line, ümlaut and all"), "a line, ümlaut and all");
        assert_eq!(one_line("a\nb\u{1b}[2Jc\u{85}\r"), "a\\nb\\u{1b}[2Jc\\u{85}\\r");
    }
}
