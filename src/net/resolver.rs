//! DNS, in a thread of its own: looking a name up blocks, and the loop must not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs as _};
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::Waker;

/// The addresses of a name, or why there are none.
pub type Resolved = Result<Vec<IpAddr>, String>;

/// The thread's other end.
#[derive(Debug)]
pub struct Resolver {
    questions: Sender<Box<str>>,
    answers: Receiver<Resolved>,
}

impl Resolver {
    /// Starts the thread; it wakes the loop when it has an answer.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(waker: Waker) -> io::Result<Self> {
        let (questions, asked) = channel::<Box<str>>();
        let (answer, answers) = channel();
        std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            // Ends when the loop does.
            while let Ok(host) = asked.recv() {
                if answer.send(look_up(&host)).is_err() || waker.wake().is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }

    /// Asks for the addresses of a name.
    pub fn ask(&self, host: &str) {
        // The thread lives as long as this end.
        let _ = self.questions.send(host.into());
    }

    /// Takes an answer, when there is one.
    pub fn take_answer(&self) -> Option<Resolved> {
        self.answers.try_recv().ok()
    }
}

/// Looks a name up, and blocks until there is an answer: for a thread that may.
///
/// # Errors
/// Why there are no addresses.
#[allow(clippy::disallowed_methods, reason = "the one place that looks names up")]
pub fn look_up(host: &str) -> Resolved {
    // RFC 6761 section 6.3: known without asking, and so too where there is no hosts file, as in an
    // image of one binary. Asking there costs seconds.
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    match (host, 0).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect()),
        Err(error) => Err(format!("the host name cannot be looked up: {error}")),
    }
}
