//! The session of one client, in either dialect, from the login to the end.
//!
//! ```text
//!            howler.v1            Socket.IO: AwaitingConnect ◀── DISCONNECT of the client ──┐
//!            Anonymous                        │ CONNECT (version 3: the server's own)       │
//!                │ login                      ▼                                             │
//!                └──────────────▶ LoggingIn ◀──────── CONNECT again ─┐                      │
//!                                     │ CouchDB answered             │                      │
//!                                     ▼                              │                      │
//!                                 AnswerPending (Socket.IO: until CONNECT was handled)      │
//!                               no │     │ yes                       │                      │
//!                                  ▼     └──────▶ Active ────────────┴──────────────────────┘
//!                               Refused             │ logout
//!                once handled      └────────────────┴───────▶ Ended ──▶ the transport is closed
//! ```
//!
//! The machine knows no transport. It appends its messages to [`Outgoing`], and the server frames
//! and writes them. It returns [`Action`]s for everything that happens elsewhere.

mod action;
mod deferred;
mod howler_v1;
mod outgoing;
mod phase;
mod replies;
mod rules;
mod socket_io;
mod timeouts;
mod transport;
mod user;

pub use action::{Action, Reply, SessionContext};
use deferred::Deferred;
pub use outgoing::{Outgoing, messages};
use phase::Phase;
pub use rules::{Dialect, Rules};
pub use transport::{Opening, Polling, TAG, Transport};
use user::User;

use crate::state::limits::{Throttle, UNAUTHENTICATED_MESSAGE};
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::state::timers::{Alarm, Deadline, Millis, seconds};
use crate::state::unauthenticated::Stage;
use crate::wire::couchdb::{Credentials, Identity, LoginError};
use crate::wire::engine_io::Version;
use crate::wire::howler_v1 as json;
use crate::wire::security::Refusal;

/// Socket.IO: time between CONNECT and the authentication event, and between a refusal and
/// DISCONNECT, in milliseconds. Clients miss an event that arrives together with the packet before
/// it. The value is one above the measured 25, since the clock counts whole milliseconds.
const PACKET_SPACING: Millis = 26;
/// Socket.IO over a WebSocket: longest wait for the pong that confirms a packet, in milliseconds.
///
/// A busy client or machine takes longer than any fixed spacing. So a WebSocket ping follows the
/// packet, and the next packet waits for the pong, which shows that the client has read the first
/// one. Some proxies swallow pings.
const RECEIPT_TIMEOUT: Millis = 2_000;
/// Time for a client to close the transport by itself after DISCONNECT, in milliseconds.
const DISCONNECT_GRACE: Millis = 500;
/// `howler.v1`: time after which a client whose session expired may connect again, in milliseconds.
/// The checks of sessions are spread in time, and so are the reconnects.
const RECONNECT_AFTER: Millis = 100;

/// A client's session.
#[derive(Debug)]
pub struct Session {
    dialect: Dialect,
    phase: Phase,
    /// Connections that carry the session.
    pub transport: Transport,
    /// Random part of the session's id.
    pub tag: [u8; TAG],
    /// Entry in the timers.
    pub alarm: Alarm,
    /// Messages that are not written yet.
    pub outgoing: Outgoing,
    /// Time of the opening, in seconds.
    pub opened: u32,
    /// Number of notifications so far.
    pub notifications: u32,
    /// Login in progress, which the server cancels if the session ends.
    pub login: Option<PendingLogin>,
    /// Number of logins that were begun.
    attempt: u32,
    user: Option<User>,
    /// Messages that wait for the end of the login.
    deferred: Option<Box<Deferred>>,
    /// Time of the last sign of life of the client.
    last_seen: Millis,
    throttle: Throttle,
    /// Socket.IO: earliest time of the next spaced packet; never until the packet before it has
    /// left.
    next_packet_at: Deadline,
    /// Socket.IO: whether the pong for the last spaced packet is missing.
    awaits_receipt: bool,
    /// `howler.v1` and Engine.IO 4: whether a ping is unanswered.
    ping_pending: bool,
    /// Delay of that ping, in milliseconds. The client has its whole time to answer even if the
    /// server was stopped meanwhile.
    ping_delay: u32,
    malformed_requests: u8,
    /// Consecutive `subscribe` requests over the limit.
    rejected_subscriptions: u8,
    /// `howler.v1`: whether the client knows the epoch.
    knows_epoch: bool,
    /// Whether the session is in the server's table of unauthenticated clients.
    pub listed: bool,
}

/// A login in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingLogin {
    /// It waits for the outcome of other logins; the key in the login limits.
    Waits(Key),
    /// It is a request to CouchDB; the key in the pool.
    Queued(Key),
}

impl Session {
    fn new(dialect: Dialect, phase: Phase, transport: Transport, now: Millis) -> Self {
        Self {
            dialect,
            phase,
            transport,
            tag: [0; TAG],
            alarm: Alarm::default(),
            outgoing: Outgoing::default(),
            opened: seconds(now),
            notifications: 0,
            login: None,
            attempt: 0,
            user: None,
            deferred: None,
            last_seen: now,
            throttle: Throttle::default(),
            next_packet_at: Deadline::NEVER,
            awaits_receipt: false,
            ping_pending: false,
            ping_delay: 0,
            malformed_requests: 0,
            rejected_subscriptions: 0,
            knows_epoch: false,
            listed: false,
        }
    }

    /// Returns the dialect.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Returns whether the session is logged in and so may be notified of changes.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// Returns the name and the roles of the user.
    pub fn user(&self) -> Option<(&str, &[Box<str>])> {
        self.user.as_ref().map(|user| (user.name(), &*user.roles))
    }

    /// Returns the name of the user.
    pub fn user_name(&self) -> Option<&str> {
        self.user.as_ref().map(User::name)
    }

    /// Handles a text message of the client.
    pub fn handle_message(&mut self, text: &str, context: &mut SessionContext<'_>) {
        match self.dialect {
            Dialect::SocketIo(_) => self.handle_engine_packet(text, context),
            Dialect::Json => self.handle_request(text, context),
        }
    }

    /// Handles a sign of life of the client, such as a pong. In Engine.IO 4 only the pongs of its
    /// own count: the client expects pings even while it sends.
    pub fn handle_activity(&mut self, now: Millis) {
        if self.dialect != Dialect::SocketIo(Version::V4) {
            self.last_seen = now;
            self.ping_pending = false;
        }
    }

    /// Counts a message, or the equivalent of one. Returns whether the client is within its message
    /// rate.
    pub fn allows_message(&mut self, rules: &Rules, now: Millis) -> bool {
        self.throttle.allows(rules.messages_per_second, now)
    }

    /// Returns the action for a list of names, unless the client exceeds its message rate.
    fn act_on_names(&mut self, names: usize, action: Action, context: &mut SessionContext<'_>) {
        let allowed = self.throttle.allows_names(names, context.rules.messages_per_second, context.now);
        context.actions.push(if allowed { action } else { Action::Close(CloseReason::TooManyMessages) });
    }

    /// Returns the stage of an unauthenticated client; None for a session that is logged in.
    pub fn stage(&self) -> Option<Stage> {
        match &self.phase {
            Phase::Active => None,
            Phase::AnswerPending(answer) if answer.is_ok() => None,
            // The session keeps its user until CouchDB has answered the new login.
            Phase::LoggingIn(_) if self.user.is_some() => None,
            Phase::LoggingIn(_) => Some(Stage::LoggingIn),
            _ => Some(Stage::Idle),
        }
    }

    /// Returns the memory for incoming and outgoing messages, in bytes.
    pub fn held_bytes(&self) -> usize {
        let credentials = match &self.phase {
            Phase::AwaitingConnect(awaited) => awaited.credentials.len(),
            _ => 0,
        };
        self.outgoing.len() + self.deferred.as_ref().map_or(0, |deferred| deferred.bytes()) + credentials
    }

    /// Returns the longest message that is allowed now, in bytes. During the login a client may
    /// already subscribe to all its databases.
    pub fn max_message(&self, rules: &Rules) -> usize {
        self.bounded(rules.max_message)
    }

    /// Returns the longest body of a POST that is allowed now, in bytes.
    pub fn max_payload(&self, rules: &Rules) -> usize {
        self.bounded(rules.max_payload)
    }

    fn bounded(&self, limit: usize) -> usize {
        match self.phase {
            Phase::Anonymous(_) | Phase::AwaitingConnect(_) => limit.min(UNAUTHENTICATED_MESSAGE),
            _ => limit,
        }
    }

    /// Returns the time of the last sign of life of the client.
    pub fn last_seen(&self) -> Millis {
        self.last_seen
    }

    /// Returns the WebSocket that carries the session.
    pub fn websocket(&self) -> Option<Key> {
        match self.transport {
            Transport::WebSocket(connection) => Some(connection),
            Transport::Polling(_) => None,
        }
    }

    /// Returns the requests that carry the session, if it polls.
    pub fn polling(&mut self) -> Option<&mut Polling> {
        match &mut self.transport {
            Transport::WebSocket(_) => None,
            Transport::Polling(polling) => Some(polling),
        }
    }

    /// Handles a pong of the client.
    pub fn handle_pong(&mut self, context: &mut SessionContext<'_>) {
        // A pong before the packet has left belongs to an older ping.
        if self.awaits_receipt && !self.next_packet_at.is_never() {
            self.awaits_receipt = false;
            self.advance(context);
        }
    }

    /// Begins a login. Replies to earlier logins are ignored from now on.
    fn begin_login(&mut self, credentials: Credentials, context: &mut SessionContext<'_>) {
        self.attempt = self.attempt.wrapping_add(1);
        context.actions.push(Action::LogIn(credentials));
    }

    /// Returns the number of the last login.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Handles CouchDB's reply to [`Action::LogIn`]. `retry_after` is the wait for a client that is
    /// rejected because too many log in, in milliseconds.
    pub fn handle_login(
        &mut self,
        answer: Result<Identity, LoginError>,
        retry_after: Millis,
        context: &mut SessionContext<'_>,
    ) {
        self.login = None;
        if !matches!(self.phase, Phase::LoggingIn(_)) {
            return;
        }
        if let Ok(identity) = &answer {
            self.set_user(identity, context);
        }
        match self.dialect {
            Dialect::SocketIo(_) => {
                if answer.is_err() {
                    self.deferred = None;
                }
                self.phase = Phase::AnswerPending(Box::new(answer));
                self.advance(context);
            }
            Dialect::Json => self.answer_login(answer, retry_after, context),
        }
    }

    /// Sets the user. Another user does not inherit subscriptions; the same user with other roles
    /// keeps those that the roles allow.
    fn set_user(&mut self, identity: &Identity, context: &mut SessionContext<'_>) {
        if let Some(user) = &self.user {
            if user.name() != &*identity.name {
                context.actions.push(Action::Leave);
            } else if user.roles != identity.roles {
                context.actions.push(Action::Reconsider);
            }
        }
        self.user = Some(User::new(identity));
    }

    /// Keeps a token of the login, in place of a cookie. A password is not kept.
    pub fn keep_token(&mut self, credentials: &Credentials) {
        match (&mut self.user, credentials) {
            (Some(user), Credentials::Token(_)) => user.set_credentials(credentials),
            (Some(user), Credentials::Password { .. }) => user.set_by_password(),
            _ => {}
        }
    }

    /// Returns the age of the session in milliseconds, up to one second too high.
    pub fn age(&self, now: Millis) -> Millis {
        now.saturating_sub(Millis::from(self.opened) * 1_000)
    }

    /// Schedules the next check whether the user is still logged in.
    pub fn check_at(&mut self, at: Millis) {
        if let Some(user) = &mut self.user {
            user.set_check_at(Some(at));
        }
    }

    /// Handles CouchDB's reply to [`Action::Check`]. `attempt` is the number of the login that was
    /// checked: the reply does not concern a later one.
    pub fn handle_check(
        &mut self,
        attempt: u32,
        answer: Result<Identity, LoginError>,
        context: &mut SessionContext<'_>,
    ) {
        let (true, Some(user)) = (self.is_active() && attempt == self.attempt, &mut self.user) else { return };
        match answer {
            Ok(identity) if *identity.name == *user.name() => {
                user.confirm();
                if identity.roles != user.roles {
                    user.roles = identity.roles;
                    context.actions.push(Action::Reconsider);
                }
                let Some(cookie) = identity.cookie else { return };
                let renewed = Credentials::cookie(cookie.reveal());
                if renewed != user.credentials() && self.dialect == Dialect::Json {
                    self.outgoing.push(|out| json::write_session(out, cookie.reveal()));
                }
                user.set_credentials(&renewed);
            }
            Err(
                LoginError::Unavailable
                | LoginError::Overloaded
                | LoginError::AddressLimit(_)
                | LoginError::NameLimit(_),
            ) => user.doubt(),
            Err(LoginError::NotAuthenticated) if user.may_have_expired() => self.expire(context),
            Ok(_)
            | Err(LoginError::NotAuthenticated | LoginError::BadToken | LoginError::Locked | LoginError::TooLong) => {
                let error = answer.err().unwrap_or(LoginError::NotAuthenticated);
                match self.dialect {
                    Dialect::Json => self.end_login(error, context),
                    Dialect::SocketIo(_) => self.refuse(error, context),
                }
            }
        }
    }

    /// Ends a session whose cookie expired because CouchDB could not renew it. The client still has
    /// its password, so it may connect and log in again without the user. A refusal would prevent
    /// that.
    fn expire(&mut self, context: &mut SessionContext<'_>) {
        if self.dialect == Dialect::Json {
            self.outgoing.push(|out| json::write_expired(out, RECONNECT_AFTER));
        }
        self.deferred = None;
        context.actions.push(Action::Close(CloseReason::SessionExpired));
    }

    /// Notifies the client that a subscription has ended because the user may not read the
    /// database.
    pub fn send_unsubscribed(&mut self, database: &str, why: Refusal) {
        match self.dialect {
            Dialect::Json => self.outgoing.push(|out| json::write_unsubscribed(out, database, why)),
            Dialect::SocketIo(_) => self.send_forbidden(database),
        }
    }

    /// Returns whether a WebSocket ping is to follow the next write. Its pong shows that the client
    /// has read the packet.
    pub fn requests_receipt(&mut self) -> bool {
        let followed = matches!(self.phase, Phase::LoggingIn(_) | Phase::AnswerPending(_) | Phase::Refused);
        let asks = matches!(self.dialect, Dialect::SocketIo(_)) && self.next_packet_at.is_never() && followed;
        self.awaits_receipt |= asks;
        asks
    }

    /// Handles the end of a write: nothing is outgoing. Returns whether a deadline was set.
    pub fn handle_flushed(&mut self, now: Millis) -> bool {
        let awaited = matches!(self.dialect, Dialect::SocketIo(_)) && self.next_packet_at.is_never();
        if awaited {
            let wait = if matches!(self.phase, Phase::Ended(_)) { DISCONNECT_GRACE } else { PACKET_SPACING };
            self.next_packet_at = Deadline::at(now + wait);
        }
        awaited
    }

    /// Returns the earliest time of the next spaced packet, if the packet before it has left.
    fn next_packet_time(&self) -> Option<Millis> {
        self.next_packet_at.moment().map(|at| if self.awaits_receipt { at + RECEIPT_TIMEOUT } else { at })
    }

    /// Defers a message to the end of the login.
    fn defer(&mut self, text: &str, context: &mut SessionContext<'_>) {
        if matches!(&self.phase, Phase::AnswerPending(answer) if answer.is_err()) {
            return;
        }
        if !self.deferred.get_or_insert_default().push(text, context.rules) {
            self.deferred = None;
            context.actions.push(Action::Close(CloseReason::TooMuchHeld));
        }
    }

    /// Resumes the deferred messages one by one, so that the replies keep their order. A message
    /// may start another login, which defers the rest again.
    fn resume_deferred(&mut self, context: &mut SessionContext<'_>) {
        let deferred = self.deferred.take().into_iter().flat_map(|deferred| deferred.into_messages());
        context.actions.extend(deferred.map(Action::Resume));
    }
}

#[cfg(test)]
impl Session {
    /// Returns the sizes of the parts, in bytes.
    pub(crate) fn sizes() -> [(&'static str, usize); 3] {
        [
            ("… of the session: phase", size_of::<Phase>()),
            ("… of the session: transport", size_of::<Transport>()),
            ("… of the session: user", size_of::<User>()),
        ]
    }
}
