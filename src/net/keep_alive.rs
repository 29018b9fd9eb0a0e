//! Socket options by which the system notices a connection to CouchDB that is silently dead.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// Time without received bytes until the first probe.
const IDLE: Duration = Duration::from_secs(15);
/// Interval of probes.
const INTERVAL: Duration = Duration::from_secs(5);
/// Number of unanswered probes until the connection ends.
const PROBES: u32 = 3;
/// Time without an acknowledgement of sent bytes until the connection ends, in milliseconds.
#[cfg(target_os = "linux")]
const UNCONFIRMED_MS: u32 = 10_000;

/// Makes the system end a connection whose other end no longer answers.
///
/// # Errors
/// Returns an error if the system does not know an option.
pub fn watch(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(&socket, true)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(&socket, UNCONFIRMED_MS)?;
    sockopt::set_tcp_keepidle(&socket, IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, PROBES)?;
    Ok(())
}
