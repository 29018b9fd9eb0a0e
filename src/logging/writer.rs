//! The thread that writes the log. It may block, since only the end of the process waits for it,
//! and not for long.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use log::{Level, Record};

use super::json;
use super::line::Line;
use super::output::is_writable;
use super::queue::{DROPPED_LINES, Message, QUEUED_BYTES};
use super::text::Text;

/// A format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Time, level, module and message.
    Text,
    /// A JSON object with `time`, `level`, `message`, and the fields of the event.
    Json,
}

/// The writer thread.
pub(super) struct Writer {
    stderr: File,
    back_end: BackEnd,
    /// Number of dropped lines that were logged.
    reported: u64,
    /// Buffer of the current line.
    line: Vec<u8>,
}

/// The back end of a format.
enum BackEnd {
    Text(Text),
    Json,
}

impl Writer {
    /// Creates a writer. `stderr` is a duplicate of standard error.
    pub(super) fn new(stderr: File, format: Format) -> io::Result<Self> {
        let back_end = match format {
            Format::Text => BackEnd::Text(Text::new()?),
            Format::Json => BackEnd::Json,
        };
        Ok(Self { stderr, back_end, reported: 0, line: Vec::new() })
    }

    /// Writes the lines of the queue until all senders are gone.
    pub(super) fn run(mut self, queue: &Receiver<Message>) {
        loop {
            let message = match queue.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.report_dropped();
                    queue.recv()
                }
                received => received.map_err(|_| std::sync::mpsc::RecvError),
            };
            match message {
                Ok(Message::Line(line)) => {
                    QUEUED_BYTES.fetch_sub(line.size(), Ordering::Relaxed);
                    if self.write_line(&line).is_err() {
                        DROPPED_LINES.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(Message::Flush(answer)) => {
                    self.report_dropped();
                    let _ = answer.try_send(());
                }
                Err(_) => return,
            }
        }
    }

    /// Logs the number of lines that were dropped since the last time.
    fn report_dropped(&mut self) {
        let dropped = DROPPED_LINES.load(Ordering::Relaxed);
        if dropped == self.reported {
            return;
        }
        let mut record = Record::builder();
        record.level(Level::Warn).target(module_path!());
        let count = dropped - self.reported;
        let line = Line::capture(
            &record.args(format_args!("{count} log lines were dropped: standard error did not take them.")).build(),
            false,
        );
        if self.write_line(&line).is_ok() {
            self.reported = dropped;
        }
    }

    fn write_line(&mut self, line: &Line) -> io::Result<()> {
        self.line.clear();
        match &mut self.back_end {
            BackEnd::Text(text) => text.write_line(&mut self.line, line, &self.stderr)?,
            BackEnd::Json => json::write_line(&mut self.line, line),
        }
        write_all(&self.stderr, &self.line)
    }
}

/// Writes all bytes, even to a descriptor that another process made non-blocking.
fn write_all(mut output: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => _ = is_writable(output, None),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn writes_all_to_a_non_blocking_descriptor() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let output = File::from(OwnedFd::from(writer));
        let bytes = vec![b'x'; 4 * 1024 * 1024];
        let writing = std::thread::spawn(move || write_all(&output, &bytes));
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), 4 * 1024 * 1024);
        assert!(writing.join().unwrap().is_ok());
    }
}
