//! Socket options by which the system notices that the other end of a connection to CouchDB is gone without a word.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// A connection on which nothing came for this long is probed.
const IDLE: Duration = Duration::from_secs(15);
/// Time between probes.
const INTERVAL: Duration = Duration::from_secs(5);
/// A connection ends after so many probes without an answer.
const PROBES: u32 = 3;
/// A connection ends when the other end does not confirm what was sent to it for this long, in milliseconds.
#[cfg(target_os = "linux")]
const UNCONFIRMED_MS: u32 = 10_000;

/// Has the system end a connection whose other end does not answer any more.
///
/// # Errors
/// When the system does not know an option.
pub fn watch(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(&socket, true)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(&socket, UNCONFIRMED_MS)?;
    sockopt::set_tcp_keepidle(&socket, IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, PROBES)?;
    Ok(())
}
