//! Output that never blocks for long.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Time for the writer to empty the queue at the end of the process, and for one last text.
pub(super) const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// Prints a text of at most 4 KiB. Gives up after a second if the output does not take it.
pub fn print_within(mut output: impl Write + AsFd, text: &str) {
    if is_writable(&output, Some(FLUSH_WITHIN)) {
        let _ = output.write_all(text.as_bytes());
    }
}

/// Waits until a write of a few bytes does not block, since it succeeds or fails at once. Returns
/// whether that happened within the time; None waits forever.
pub(super) fn is_writable(output: impl AsFd, within: Option<Duration>) -> bool {
    let timeout = within.and_then(|within| Timespec::try_from(within).ok());
    loop {
        match poll(&mut [PollFd::new(&output, PollFlags::OUT)], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn waits_for_blocked_output_within_the_time() {
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
