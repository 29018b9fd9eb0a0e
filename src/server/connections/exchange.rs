//! HTTP requests that are not answered yet: one exchange is a request and its answer.

use crate::state::metrics::CloseReason;
use crate::state::routes::PostFormat;
use crate::state::table::Key;
use crate::wire::body::BodyDecoder;
use crate::wire::engine_io::Sid;
use crate::wire::http::Request;

/// What of a request decides the form of its answer.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) keep_alive: bool,
    pub(crate) head_only: bool,
    /// Whether the client takes a close packet for the wish of its own app, and would not come back.
    /// `python-socketio` does while it polls; it says who it is by the HTTP library that it uses.
    pub(crate) close_is_final: bool,
    /// The page that a browser asks for.
    pub(crate) origin: Option<Box<str>>,
    /// The JSONP callback to answer to.
    pub(crate) jsonp: Option<u32>,
    /// For the log, where it is to be told.
    pub(crate) asked: Option<Box<Asked>>,
    /// The session, once it is known: load balancers find it in a cookie.
    pub(crate) sid: Option<Sid>,
    /// Whether the client speaks TLS, to this server or to a trusted proxy.
    pub(crate) secure: bool,
    /// Why the connection is closed behind the answer, if it is.
    pub(crate) closed_for: CloseReason,
}

impl Exchange {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        Self {
            keep_alive: request.keep_alive && request.content_length == Some(0),
            head_only: request.method == "HEAD",
            close_is_final: request
                .user_agent
                .is_some_and(|agent| agent.starts_with("python-requests/") || agent.starts_with("Python/")),
            origin: request.origin.map(Into::into),
            jsonp: None,
            asked: Asked::of(request),
            sid: None,
            secure: false,
            closed_for: CloseReason::Served,
        }
    }
}

/// A POST whose body comes in.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) exchange: Exchange,
    pub(crate) session: Key,
    pub(crate) format: PostFormat,
    pub(crate) decoder: BodyDecoder,
    pub(crate) body: Vec<u8>,
}

impl Post {
    /// The session that it is for.
    pub(crate) fn session(&self) -> Key {
        self.session
    }

    /// Returns how many bytes of memory hold what has come.
    pub(crate) fn held_bytes(&self) -> usize {
        self.body.capacity()
    }
}

/// A GET that waits for something to tell.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) exchange: Exchange,
    pub(crate) session: Key,
}

/// What was asked, kept for the log until it is answered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: Box<str>,
    pub(crate) path: Box<str>,
}

impl Asked {
    /// Only where it will be logged: polls wait for long, and there are many.
    pub(crate) fn of(request: &Request<'_>) -> Option<Box<Self>> {
        log::log_enabled!(log::Level::Debug)
            .then(|| Box::new(Self { method: request.method.into(), path: request.path.into() }))
    }
}
