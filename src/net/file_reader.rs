//! Reads a file again while the server runs. A thread of its own does it, since the file may be a
//! pipe or on a slow disk.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::Waker;

/// Most bytes to read.
const MAX_FILE: u64 = 64 * 1024;

/// Reads one file.
#[derive(Debug)]
pub struct FileReader {
    path: PathBuf,
    waker: Arc<Waker>,
    done: Sender<io::Result<String>>,
    contents: Receiver<io::Result<String>>,
}

impl FileReader {
    /// Creates a reader that wakes the loop when it is done.
    pub fn new(path: &Path, waker: Arc<Waker>) -> Self {
        let (done, contents) = channel();
        Self { path: path.to_owned(), waker, done, contents }
    }

    /// Starts to read. [`FileReader::take`] returns the content.
    pub fn start(&self) {
        let (path, waker, done) = (self.path.clone(), Arc::clone(&self.waker), self.done.clone());
        let read = move || {
            // Both fail if the server has stopped.
            let _ = done.send(read(&path));
            let _ = waker.wake();
        };
        if let Err(error) = std::thread::Builder::new().name("file-reader".to_owned()).spawn(read) {
            let _ = self.done.send(Err(error));
            let _ = self.waker.wake();
        }
    }

    /// Returns the content if it was read.
    pub fn take(&self) -> Option<io::Result<String>> {
        self.contents.try_recv().ok()
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}
