//! The log: one line an event on standard error, as text or as JSON.
//!
//! Logging never blocks its caller, for standard error may be a pipe that nobody reads. A caller puts a line into a
//! bounded queue, and a thread of its own writes it. Lines that do not fit are dropped and counted, and so are lines that
//! cannot be written. The end of the process waits for the queue, but not for long.
//!
//! ```text
//! caller ──Line──▶ queue ──▶ writer thread: text or JSON ──▶ standard error
//!           full: dropped and counted
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::line::Line;
use self::writer::Writer;

mod json;
mod line;
mod text;
mod writer;

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Time, level, module and message.
    Text,
    /// A JSON object with `time`, `level`, `message`, and the fields of the event.
    Json,
}

/// Lines that were dropped because the queue was full, or because they could not be written.
pub static DROPPED_LINES: AtomicU64 = AtomicU64::new(0);

/// Bytes of the lines in the queue.
static QUEUED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Most lines in the queue.
const QUEUE_LINES: usize = 8_192;
/// Most bytes in the queue.
const QUEUE_BYTES: usize = 2 * 1024 * 1024;
/// Time for the writer to empty the queue at the end of the process, and for one last text to be taken.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// Attempts to ask for a flush while the queue is full, within half of that time.
const FLUSH_ATTEMPTS: u32 = 20;

/// Starts the log. Lines that are less important than a level are left out.
///
/// # Errors
/// Returns an error if the writer thread cannot be started, or if a log was started before.
pub fn start(level: LevelFilter, format: Format) -> io::Result<()> {
    let (queue, messages) = sync_channel(QUEUE_LINES);
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let writer = Writer::new(stderr, format)?;
    std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&messages))?;
    let logger = Logger { level, queue, has_fields: format == Format::Json };
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
    log::set_max_level(level);
    flush_before_panics();
    Ok(())
}

/// Waits until all lines are written, but not for more than a second.
pub fn flush() {
    log::logger().flush();
}

/// Prints an error behind all lines of the log, as a plain line of text in any format. Gives up after a second if
/// standard error does not take it.
pub fn print_error(error: &str) {
    flush();
    print_within(io::stderr(), &format!("couchdb-howler: {error}\n"));
}

/// Prints a text of at most 4 KiB. Gives up after a second if the output does not take it.
pub fn print_within(mut output: impl Write + AsFd, text: &str) {
    if is_writable(&output, Some(FLUSH_WITHIN)) {
        let _ = output.write_all(text.as_bytes());
    }
}

/// Has panics reported behind all lines of the log. A report that nobody reads must not keep the process from ending.
fn flush_before_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        flush();
        if is_writable(io::stderr(), Some(FLUSH_WITHIN)) {
            report(info);
        }
    }));
}

/// Waits until a write of a few bytes does not block, because there is room for them or because it fails. Returns
/// whether that was so within the time, or waits for ever without one.
fn is_writable(output: impl AsFd, within: Option<Duration>) -> bool {
    let timeout = within.and_then(|within| Timespec::try_from(within).ok());
    loop {
        match poll(&mut [PollFd::new(&output, PollFlags::OUT)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

/// What the writer thread is given.
#[derive(Debug)]
enum Message {
    Line(Box<Line>),
    /// To be answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// The front end: puts lines into the queue.
#[derive(Debug)]
struct Logger {
    level: LevelFilter,
    queue: SyncSender<Message>,
    /// Whether the format shows the fields of events.
    has_fields: bool,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = Line::capture(record, self.has_fields);
        let size = line.size();
        let fits = QUEUED_BYTES.fetch_add(size, Ordering::Relaxed) + size <= QUEUE_BYTES;
        if !fits || self.queue.try_send(Message::Line(Box::new(line))).is_err() {
            QUEUED_BYTES.fetch_sub(size, Ordering::Relaxed);
            DROPPED_LINES.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        let (answer, answered) = sync_channel(1);
        let mut message = Message::Flush(answer);
        for _ in 0..FLUSH_ATTEMPTS {
            match self.queue.try_send(message) {
                Ok(()) => {
                    let _ = answered.recv_timeout(FLUSH_WITHIN / 2);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(back)) => message = back,
            }
            // There is no answer without a question: this only waits.
            let _ = answered.recv_timeout(FLUSH_WITHIN / 2 / FLUSH_ATTEMPTS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_do_not_fit_are_dropped_and_counted() {
        let (queue, messages) = sync_channel(3);
        let logger = Logger { level: LevelFilter::Info, queue, has_fields: false };
        let log = |text: &str| {
            logger.log(&Record::builder().level(log::Level::Info).args(format_args!("{text}")).build());
            DROPPED_LINES.load(Ordering::Relaxed)
        };
        assert_eq!([log("1"), log("2"), log("3"), log("4"), log("5")], [0, 0, 0, 1, 2]);
        // With nobody to answer it gives up.
        logger.flush();
        let lines = messages.try_iter().filter(|message| matches!(message, Message::Line(_))).count();
        assert_eq!(lines, 3);
        QUEUED_BYTES.store(QUEUE_BYTES - 10, Ordering::Relaxed);
        assert_eq!(log("six"), 3);
        QUEUED_BYTES.store(0, Ordering::Relaxed);
        assert_eq!(log("seven"), 3);
        drop(messages);
        assert_eq!(log("eight"), 4);
        logger.flush();
    }

    #[test]
    fn output_that_nobody_reads_is_waited_for_no_longer_than_told() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        assert!(is_writable(&writer, Some(Duration::ZERO)));
        while is_writable(&writer, Some(Duration::ZERO)) {
            writer.write_all(&[b'x'; 4096]).unwrap();
        }
        print_within(&writer, "lost");
        io::Read::read_exact(&mut reader, &mut [0; 8192]).unwrap();
        print_within(&writer, "kept");
        drop(reader);
        assert!(is_writable(&writer, None), "a write fails at once");
        print_within(&writer, "lost too");
    }
}
