//! HTTP exchanges: a request that has no response yet, and what decides the form of the response.

use crate::state::metrics::CloseReason;
use crate::state::routes::PostFormat;
use crate::state::table::Key;
use crate::wire::http::BodyDecoder;
use crate::wire::http::Request;

/// Properties of a request that decide the form of its response.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) keep_alive: bool,
    pub(crate) head_only: bool,
    /// Whether the client takes a close packet for a wish of its own app and would not reconnect.
    /// `python-socketio` does while it polls; its HTTP library shows in `User-Agent`.
    pub(crate) close_is_final: bool,
    /// Origin of the page that sent the request (RFC 6454).
    pub(crate) origin: Option<Box<str>>,
    /// Number of the JSONP callback that wraps the response.
    pub(crate) jsonp: Option<u32>,
    /// Method and path, where the log needs them.
    pub(crate) line: Option<Box<RequestLine>>,
    /// The session, once it is known.
    pub(crate) session: Option<Key>,
    /// Whether the client speaks TLS, to this server or to a trusted proxy.
    pub(crate) secure: bool,
    /// Reason for closing the connection after the response, if it is closed.
    pub(crate) closed_for: CloseReason,
}

impl Exchange {
    pub(crate) fn new(request: &Request<'_>) -> Self {
        Self {
            keep_alive: request.keep_alive && request.content_length == Some(0),
            head_only: request.method == "HEAD",
            close_is_final: request
                .user_agent
                .is_some_and(|agent| agent.starts_with("python-requests/") || agent.starts_with("Python/")),
            origin: request.origin.map(Into::into),
            jsonp: None,
            line: RequestLine::new(request),
            session: None,
            secure: false,
            closed_for: CloseReason::Served,
        }
    }
}

/// Method and path of a request, kept for the log until the response.
#[derive(Debug)]
pub(crate) struct RequestLine {
    pub(super) method: Box<str>,
    pub(super) path: Box<str>,
}

impl RequestLine {
    /// Copies method and path if the log wants them: polls wait for long, and there are many.
    fn new(request: &Request<'_>) -> Option<Box<Self>> {
        log::log_enabled!(log::Level::Debug)
            .then(|| Box::new(Self { method: request.method.into(), path: request.path.into() }))
    }
}

/// A POST whose body is being received.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) exchange: Exchange,
    pub(crate) session: Key,
    pub(crate) format: PostFormat,
    pub(super) decoder: BodyDecoder,
    pub(crate) body: Vec<u8>,
}

impl Post {
    pub(crate) fn new(exchange: Exchange, session: Key, format: PostFormat, decoder: BodyDecoder) -> Self {
        Self { exchange, session, format, decoder, body: Vec::new() }
    }
}
