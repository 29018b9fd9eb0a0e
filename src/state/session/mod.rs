//! One client's session, whichever dialect it speaks: from the log-in to the end.
//!
//! ```text
//!            howler.v1            Socket.IO: Awaiting ◀──── DISCONNECT of the client ───┐
//!            Anonymous                        │ CONNECT (version 3: the server's own)    │
//!                │ log-in                     ▼                                          │
//!                └──────────────▶ LoggingIn ◀──────── CONNECT again ─┐                   │
//!                                     │ CouchDB answered             │                   │
//!                                     ▼                              │                   │
//!                                 Answering (Socket.IO: until CONNECT was handled)       │
//!                               no │     │ yes                       │                   │
//!                                  ▼     └──────▶ Active ────────────┴───────────────────┘
//!                               Refused             │ log-out
//!                once handled      └────────────────┴───────▶ Ended ──▶ the transport is closed
//! ```
//!
//! The machine knows no transport: what it says is put into its [`Outgoing`], one message each; the
//! server frames and writes them. What is to be done elsewhere is returned as [`Action`]s.

mod action;
mod answers;
mod held;
mod howler_v1;
mod outgoing;
mod phase;
mod rules;
mod socket_io;
mod timeouts;
mod transport;
mod user;

pub use action::{Action, Reply, Turn};
use held::Held;
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
/// DISCONNECT. Clients miss an event that comes together with the packet before it. A millisecond
/// over the 25 that were measured, since the clock counts whole ones.
const SPACING: Millis = 26;
/// Socket.IO over a WebSocket: a client that computes, or a machine that is busy, takes longer than any
/// distance. So a WebSocket ping goes with the packet, and the next waits for the pong, which says that
/// the packet was read: what comes after it is read in another go. But it waits no longer than this, in
/// case something on the way swallows pings.
const RECEIPT_WITHIN: Millis = 2_000;
/// Time in which a client that was told to disconnect may close the transport by itself.
const GRACE: Millis = 500;
/// `howler.v1`: a client whose session expired may connect again after this long, in milliseconds. Checks are spread in
/// time, and so are their ends.
const RECONNECT_AFTER: Millis = 100;
/// A session.
#[derive(Debug)]
pub struct Session {
    dialect: Dialect,
    phase: Phase,
    /// What carries it.
    pub transport: Transport,
    /// What makes the session's id hard to guess.
    pub tag: [u8; TAG],
    /// The entry in the timers.
    pub alarm: Alarm,
    /// What the session says and is not written yet.
    pub outgoing: Outgoing,
    /// When it was opened.
    pub opened: u32,
    /// How many notifications it was told.
    pub told: u32,
    /// The login that is on its way to CouchDB, to be given up when the session ends.
    pub log_in: Option<PendingLogin>,
    /// How many logins it has begun.
    attempt: u32,
    user: Option<User>,
    /// Messages that wait for the end of the log-in.
    held: Option<Box<Held>>,
    /// When the client was last heard of.
    heard: Millis,
    throttle: Throttle,
    /// Socket.IO: the moment from which the next spaced packet may leave; never while the packet
    /// before it has not left.
    clear_from: Deadline,
    /// Socket.IO: whether the client has yet to answer the ping that went with the packet before.
    unconfirmed: bool,
    /// `howler.v1` and Engine.IO 4: whether a ping is out.
    pinged: bool,
    /// How late that ping was, in milliseconds: the client has its whole time to answer, also when the server stood
    /// still.
    late: u32,
    strikes: u8,
    /// How many subscriptions in a row were refused for being too many.
    refusals: u8,
    /// `howler.v1`: whether the client was told an epoch.
    knows_epoch: bool,
    /// Whether it is among the unauthenticated clients: the server's own.
    pub listed: bool,
}

/// A login on its way to CouchDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingLogin {
    /// It waits for the answers to others; its key in the login limits.
    Waits(Key),
    /// Its key in the queue of requests.
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
            told: 0,
            log_in: None,
            attempt: 0,
            user: None,
            held: None,
            heard: now,
            throttle: Throttle::default(),
            clear_from: Deadline::NEVER,
            unconfirmed: false,
            pinged: false,
            late: 0,
            strikes: 0,
            refusals: 0,
            knows_epoch: false,
            listed: false,
        }
    }

    /// What it speaks.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Whether it is logged in, and so may be told of changes.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    /// The name and the roles of who logged in.
    pub fn user(&self) -> Option<(&str, &[Box<str>])> {
        self.user.as_ref().map(|user| (user.name(), &*user.roles))
    }

    /// The name of who logged in.
    pub fn user_name(&self) -> Option<&str> {
        self.user.as_ref().map(User::name)
    }

    /// Takes a text message of the client.
    pub fn handle_message(&mut self, text: &str, turn: &mut Turn<'_>) {
        match self.dialect {
            Dialect::SocketIo(_) => self.handle_engine_packet(text, turn),
            Dialect::Json => self.handle_request(text, turn),
        }
    }

    /// Takes note that something came from the client, be it a pong. In Engine.IO 4 only pongs count: the
    /// client expects its pings whatever it sends.
    pub fn handle_heard(&mut self, now: Millis) {
        if self.dialect != Dialect::SocketIo(Version::V4) {
            self.heard = now;
            self.pinged = false;
        }
    }

    /// Takes note of a message, or of what is as good as one; whether the client sends no more than it may.
    pub fn allows_message(&mut self, rules: &Rules, now: Millis) -> bool {
        self.throttle.allows(rules.messages_per_second, now)
    }

    /// Hands a list of names on, unless the client sends more than it may.
    fn act_on_names(&mut self, names: usize, action: Action, turn: &mut Turn<'_>) {
        let allowed = self.throttle.allows_names(names, turn.rules.messages_per_second, turn.now);
        turn.actions.push(if allowed { action } else { Action::Close(CloseReason::TooManyMessages) });
    }

    /// Returns how far an unauthenticated client has come; None for a session that is logged in.
    pub fn stage(&self) -> Option<Stage> {
        match &self.phase {
            Phase::Active => None,
            Phase::Answering(answer) if answer.is_ok() => None,
            // It logs in again, and is whoever it was until CouchDB has answered.
            Phase::LoggingIn(_) if self.user.is_some() => None,
            Phase::LoggingIn(_) => Some(Stage::LoggingIn),
            _ => Some(Stage::Idle),
        }
    }

    /// Returns how many bytes of messages it holds, of the client's and of its own.
    pub fn held_bytes(&self) -> usize {
        let credentials = match &self.phase {
            Phase::Awaiting(awaited) => awaited.credentials.len(),
            _ => 0,
        };
        self.outgoing.len() + self.held.as_ref().map_or(0, |held| held.bytes()) + credentials
    }

    /// Returns the longest message that it takes now, in bytes. A client may subscribe to everything at once while its
    /// login is under way.
    pub fn max_message(&self, rules: &Rules) -> usize {
        self.bounded(rules.max_message)
    }

    /// Returns the longest body of a POST that it takes now, in bytes.
    pub fn max_payload(&self, rules: &Rules) -> usize {
        self.bounded(rules.max_payload)
    }

    fn bounded(&self, limit: usize) -> usize {
        match self.phase {
            Phase::Anonymous(_) | Phase::Awaiting(_) => limit.min(UNAUTHENTICATED_MESSAGE),
            _ => limit,
        }
    }

    /// When the client was last heard of.
    pub fn heard(&self) -> Millis {
        self.heard
    }

    /// Takes note that the client takes what is written to it, though nothing can be read of it meanwhile: it is not
    /// silent.
    pub fn handle_taking(&mut self, now: Millis) {
        self.heard = now;
        self.pinged = false;
    }

    /// The WebSocket that carries it.
    pub fn websocket(&self) -> Option<Key> {
        match self.transport {
            Transport::WebSocket(connection) => Some(connection),
            Transport::Polling(_) => None,
        }
    }

    /// The requests of a session that polls.
    pub fn polling(&mut self) -> Option<&mut Polling> {
        match &mut self.transport {
            Transport::WebSocket(_) => None,
            Transport::Polling(polling) => Some(polling),
        }
    }

    /// Takes a pong of the client.
    pub fn handle_pong(&mut self, turn: &mut Turn<'_>) {
        // One that comes before the packet has left belongs to an older ping.
        if self.unconfirmed && !self.clear_from.is_never() {
            self.unconfirmed = false;
            self.advance(turn);
        }
    }

    /// Has CouchDB asked who this is. The answer to whatever was asked for another login is not this one's.
    fn begin_login(&mut self, credentials: Credentials, turn: &mut Turn<'_>) {
        self.attempt = self.attempt.wrapping_add(1);
        turn.actions.push(Action::LogIn(credentials));
    }

    /// Returns the number of the login that was begun last.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Takes CouchDB's answer to [`Action::LogIn`]; when too many log in, the client is asked to come back after so
    /// long.
    pub fn handle_login(&mut self, answer: Result<Identity, LoginError>, retry_after: Millis, turn: &mut Turn<'_>) {
        self.log_in = None;
        if !matches!(self.phase, Phase::LoggingIn(_)) {
            return;
        }
        if let Ok(identity) = &answer {
            self.take_user(identity, turn);
        }
        match self.dialect {
            Dialect::SocketIo(_) => {
                if answer.is_err() {
                    self.held = None;
                }
                self.phase = Phase::Answering(Box::new(answer));
                self.advance(turn);
            }
            Dialect::Json => self.answer_login(answer, retry_after, turn),
        }
    }

    /// Remembers who this is. Another user than before inherits no subscriptions; the same user with other roles keeps
    /// only those that these roles allow.
    fn take_user(&mut self, identity: &Identity, turn: &mut Turn<'_>) {
        if let Some(user) = &self.user {
            if user.name() != &*identity.name {
                turn.actions.push(Action::Leave);
            } else if user.roles != identity.roles {
                turn.actions.push(Action::Reconsider);
            }
        }
        self.user = Some(User::new(identity));
    }

    /// Takes note of what the user logged in with. Instead of a cookie a token is kept; a password is not.
    pub fn keep_token(&mut self, credentials: &Credentials) {
        match (&mut self.user, credentials) {
            (Some(user), Credentials::Token(_)) => user.set_credentials(credentials),
            (Some(user), Credentials::Password { .. }) => user.set_by_password(),
            _ => {}
        }
    }

    /// How long ago it was opened, in milliseconds; up to a second more than it is.
    pub fn age(&self, now: Millis) -> Millis {
        now.saturating_sub(Millis::from(self.opened) * 1_000)
    }

    /// Has CouchDB asked at a moment whether the user is still logged in.
    pub fn check_at(&mut self, at: Millis) {
        if let Some(user) = &mut self.user {
            user.set_check_at(Some(at));
        }
    }

    /// Takes CouchDB's answer to [`Action::Check`]. `attempt` is the number of the login that was checked: the answer
    /// says nothing about a later one.
    pub fn handle_check(&mut self, attempt: u32, answer: Result<Identity, LoginError>, turn: &mut Turn<'_>) {
        let (true, Some(user)) = (self.is_active() && attempt == self.attempt, &mut self.user) else { return };
        match answer {
            Ok(identity) if *identity.name == *user.name() => {
                user.confirm();
                if identity.roles != user.roles {
                    user.roles = identity.roles;
                    turn.actions.push(Action::Reconsider);
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
            Err(LoginError::NotAuthenticated) if user.may_have_run_out() => self.expire(turn),
            Ok(_)
            | Err(LoginError::NotAuthenticated | LoginError::BadToken | LoginError::Locked | LoginError::TooLong) => {
                let error = answer.err().unwrap_or(LoginError::NotAuthenticated);
                match self.dialect {
                    Dialect::Json => self.end_login(error, turn),
                    Dialect::SocketIo(_) => self.refuse(error, turn),
                }
            }
        }
    }

    /// Ends a session whose cookie ran out because CouchDB could not be asked to renew it. The client has the password,
    /// and nothing speaks against it: it is to connect and log in again by itself, which a refusal would keep it from.
    fn expire(&mut self, turn: &mut Turn<'_>) {
        if self.dialect == Dialect::Json {
            self.outgoing.push(|out| json::write_expired(out, RECONNECT_AFTER));
        }
        self.held = None;
        turn.actions.push(Action::Close(CloseReason::SessionExpired));
    }

    /// Tells the client that it is not subscribed any more to a database that the user may not read.
    pub fn say_unsubscribed(&mut self, database: &str, why: Refusal) {
        match self.dialect {
            Dialect::Json => self.outgoing.push(|out| json::write_unsubscribed(out, database, why)),
            Dialect::SocketIo(_) => self.say_forbidden(database),
        }
    }

    /// Whether a WebSocket ping is to go with what is about to be written; its pong tells that the client
    /// has read that.
    pub fn asks_receipt(&mut self) -> bool {
        let followed = matches!(self.phase, Phase::LoggingIn(_) | Phase::Answering(_) | Phase::Refused);
        let asks = matches!(self.dialect, Dialect::SocketIo(_)) && self.clear_from.is_never() && followed;
        self.unconfirmed |= asks;
        asks
    }

    /// Takes note that all that was outgoing has been written; whether that sets a deadline.
    pub fn handle_flushed(&mut self, now: Millis) -> bool {
        let awaited = matches!(self.dialect, Dialect::SocketIo(_)) && self.clear_from.is_never();
        if awaited {
            let wait = if matches!(self.phase, Phase::Ended(_)) { GRACE } else { SPACING };
            self.clear_from = Deadline::at(now + wait);
        }
        awaited
    }

    /// The moment from which the next spaced packet may leave, if the packet before it has.
    fn next_from(&self) -> Option<Millis> {
        self.clear_from.moment().map(|at| if self.unconfirmed { at + RECEIPT_WITHIN } else { at })
    }

    /// Puts a message aside until the log-in is over.
    fn hold(&mut self, text: &str, turn: &mut Turn<'_>) {
        if matches!(&self.phase, Phase::Answering(answer) if answer.is_err()) {
            return;
        }
        if !self.held.get_or_insert_default().push(text, turn.rules) {
            self.held = None;
            turn.actions.push(Action::Close(CloseReason::TooMuchHeld));
        }
    }

    /// Has what was put aside carried out, one message after the other, so that the answers come in
    /// order. A message in it may start another log-in; what follows is put aside again.
    fn release(&mut self, turn: &mut Turn<'_>) {
        let held = self.held.take().into_iter().flat_map(|held| held.into_messages());
        turn.actions.extend(held.map(Action::Resume));
    }
}

#[cfg(test)]
impl Session {
    /// What there is in it, in bytes.
    pub(crate) fn sizes() -> [(&'static str, usize); 3] {
        [
            ("… of the session: phase", size_of::<Phase>()),
            ("… of the session: transport", size_of::<Transport>()),
            ("… of the session: who logged in", size_of::<User>()),
        ]
    }
}
