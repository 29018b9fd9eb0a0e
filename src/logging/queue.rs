//! The queue between callers and the writer thread.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use log::{LevelFilter, Log, Metadata, Record};

use super::line::Line;
use super::output::FLUSH_WITHIN;

/// Lines that were dropped because the queue was full or the write failed.
pub static DROPPED_LINES: AtomicU64 = AtomicU64::new(0);

/// Bytes of the lines in the queue.
pub(super) static QUEUED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Most lines in the queue.
const QUEUE_LINES: usize = 8_192;
/// Most bytes in the queue.
const QUEUE_BYTES: usize = 2 * 1024 * 1024;
/// Attempts to request a flush while the queue is full, within half of [`FLUSH_WITHIN`].
const FLUSH_ATTEMPTS: u32 = 20;

/// A message to the writer thread.
#[derive(Debug)]
pub(super) enum Message {
    Line(Box<Line>),
    /// Request to confirm that everything before it is written.
    Flush(SyncSender<()>),
}

/// The front end, which puts lines into the queue.
#[derive(Debug)]
pub(super) struct Logger {
    level: LevelFilter,
    queue: SyncSender<Message>,
    /// Whether the format shows the fields of events.
    has_fields: bool,
}

impl Logger {
    /// Creates a front end, and the receiving end of its queue.
    pub(super) fn new(level: LevelFilter, has_fields: bool) -> (Self, Receiver<Message>) {
        let (queue, messages) = sync_channel(QUEUE_LINES);
        (Self { level, queue, has_fields }, messages)
    }
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
            // The request was not sent, so this only waits.
            let _ = answered.recv_timeout(FLUSH_WITHIN / 2 / FLUSH_ATTEMPTS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_and_counts_lines_that_do_not_fit() {
        let (queue, messages) = sync_channel(3);
        let logger = Logger { level: LevelFilter::Info, queue, has_fields: false };
        let log = |text: &str| {
            logger.log(&Record::builder().level(log::Level::Info).args(format_args!("{text}")).build());
            DROPPED_LINES.load(Ordering::Relaxed)
        };
        assert_eq!([log("1"), log("2"), log("3"), log("4"), log("5")], [0, 0, 0, 1, 2]);
        // Without a writer the flush gives up.
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
}
