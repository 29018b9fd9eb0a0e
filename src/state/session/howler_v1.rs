//! The `howler.v1` side of a session.

use super::Session;
use super::action::{Action, Reply, SessionContext};
use super::phase::Phase;
use super::rules::Dialect;
use super::transport::Transport;
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::{Identity, LoginError};
use crate::wire::howler_v1::{self, Operation, RequestId};
use crate::wire::secret::Secret;

/// Consecutive malformed requests that end a session.
const MAX_MALFORMED_REQUESTS: u8 = 3;
/// Error message for requests that need a login.
const LOGIN_REQUIRED: &str = "log in first";

impl Session {
    /// Opens a session: the server sends `hello` and waits for the login.
    pub fn open_json(connection: Key, epoch: Option<&str>, context: &mut SessionContext<'_>) -> Self {
        let phase = Phase::Anonymous(context.now + context.rules.login_timeout);
        let mut session = Self::new(Dialect::Json, phase, Transport::WebSocket(connection), context.now);
        session.send_hello(epoch);
        session
    }

    /// Sends `hello` with the epoch.
    pub fn send_hello(&mut self, epoch: Option<&str>) {
        self.knows_epoch = epoch.is_some();
        self.outgoing.push(|out| howler_v1::write_hello(out, epoch));
    }

    /// Notifies the client that changes may have been lost.
    pub fn send_resync(&mut self, reason: &str) {
        self.outgoing.push(|out| howler_v1::write_resync(out, reason));
    }

    pub(super) fn handle_request(&mut self, text: &str, context: &mut SessionContext<'_>) {
        match self.phase {
            Phase::LoggingIn(_) => return self.defer(text, context),
            Phase::Ended(_) => return,
            _ => {}
        }
        let (id, operation) = howler_v1::parse_request(text);
        match operation {
            Ok(operation) => {
                self.malformed_requests = 0;
                self.handle_operation(id, operation, context);
            }
            Err(error) => {
                self.malformed_requests += 1;
                self.outgoing.push(|out| howler_v1::write_error(out, &id, "TypeError", error.message(), None));
                if self.malformed_requests >= MAX_MALFORMED_REQUESTS {
                    self.close(CloseReason::Malformed, context);
                }
            }
        }
    }

    fn handle_operation(&mut self, id: RequestId, operation: Operation<'_>, context: &mut SessionContext<'_>) {
        let reply = Reply::Json(id);
        match operation {
            Operation::LogIn(credentials) => {
                self.phase = Phase::LoggingIn(Box::new(reply));
                self.begin_login(credentials, context);
            }
            Operation::Heartbeat => self.answer_ok(&reply),
            Operation::LogOut => {
                self.answer_ok(&reply);
                self.close(CloseReason::LoggedOut, context);
            }
            _ if !self.is_active() => self.answer_error(&reply, LoginError::NotAuthenticated.name(), LOGIN_REQUIRED),
            Operation::Subscribe(positions, epoch) => {
                let count = positions.len();
                self.act_on_names(count, Action::Subscribe(reply, positions, epoch.map(Into::into)), context);
            }
            Operation::Unsubscribe(names) => {
                self.act_on_names(names.len(), Action::Unsubscribe(reply, names), context);
            }
        }
    }

    pub(super) fn answer_login(
        &mut self,
        answer: Result<Identity, LoginError>,
        retry_after: Millis,
        context: &mut SessionContext<'_>,
    ) {
        let Phase::LoggingIn(reply) = std::mem::replace(&mut self.phase, Phase::Active) else {
            unreachable!("only called in this phase");
        };
        match answer {
            Ok(identity) => {
                if let Reply::Json(id) = &*reply {
                    self.outgoing.push(|out| {
                        let cookie = identity.cookie.as_ref().map(Secret::reveal);
                        howler_v1::write_logged_in(out, id, &identity.name, cookie);
                    });
                }
                self.resume_deferred(context);
            }
            Err(error) => {
                if let Reply::Json(id) = &*reply {
                    let retry_after = (error == LoginError::Overloaded).then_some(retry_after);
                    let retry_after = error.retry_after().or(retry_after);
                    self.outgoing
                        .push(|out| howler_v1::write_error(out, id, error.name(), error.message(), retry_after));
                }
                self.close(CloseReason::NotAuthenticated, context);
            }
        }
    }

    pub(super) fn end_login(&mut self, error: LoginError, context: &mut SessionContext<'_>) {
        self.outgoing.push(|out| howler_v1::write_not_authenticated(out, error.name(), error.message()));
        self.close(CloseReason::NotAuthenticated, context);
    }

    fn close(&mut self, reason: CloseReason, context: &mut SessionContext<'_>) {
        self.deferred = None;
        self.phase = Phase::Ended(reason);
        context.actions.extend([Action::Leave, Action::Close(reason)]);
    }
}
