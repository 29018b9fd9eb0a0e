//! Work that takes longer than a turn of the loop may: it is done in a thread of its own, and wakes
//! the loop.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::Waker;

/// Results of one kind of work. The caller bounds how much is under way.
#[derive(Debug)]
pub struct Background<T> {
    waker: Arc<Waker>,
    done: Sender<T>,
    results: Receiver<T>,
}

impl<T: Send + 'static> Background<T> {
    /// Creates it without any work.
    pub fn new(waker: Arc<Waker>) -> Self {
        let (done, results) = channel();
        Self { waker, done, results }
    }

    /// Starts work whose result is for [`Background::take`]. Where the system has no thread, the
    /// caller does the work.
    pub fn start<I: Send + 'static>(&self, input: I, work: impl Fn(I) -> T + Send + Copy + 'static) {
        // A thread that does not start loses what was moved into it, so the input is sent to it.
        let (hand, taken) = channel();
        let (waker, done) = (Arc::clone(&self.waker), self.done.clone());
        let run = move || {
            if let Ok(input) = taken.recv() {
                // A server that stops meanwhile needs neither.
                let _ = done.send(work(input));
                let _ = waker.wake();
            }
        };
        let started = std::thread::Builder::new().name("background".to_owned()).spawn(run).is_ok();
        if started {
            let _ = hand.send(input);
        } else {
            let _ = self.done.send(work(input));
            let _ = self.waker.wake();
        }
    }

    /// Takes a result, if there is one.
    pub fn take(&self) -> Option<T> {
        self.results.try_recv().ok()
    }
}
