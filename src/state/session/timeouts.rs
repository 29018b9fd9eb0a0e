//! Deadlines of a session, and the pings that detect dead clients.

use super::Session;
use super::action::{Action, Turn};
use super::phase::Phase;
use super::rules::{Dialect, Rules};
use super::user::User;
use crate::state::metrics::CloseReason;
use crate::state::timers::Millis;
use crate::wire::engine_io::Version;

/// `howler.v1`: silence after which a client is pinged, in milliseconds.
const JSON_PING_AFTER: Millis = 25_000;
/// `howler.v1`: time for the pong, in milliseconds.
const JSON_PONG_WITHIN: Millis = 20_000;
/// Delay of a check after which the cookie may have expired, in milliseconds. Checks are late if
/// the server was stopped.
const CHECK_LATE: Millis = 5_000;

impl Session {
    /// Returns when [`Session::handle_timeout`] is due.
    pub fn poll_timeout(&self, rules: &Rules) -> Millis {
        let silence = self.silent_until(rules);
        match self.phase {
            Phase::Anonymous(until) => silence.min(until),
            Phase::Awaiting(ref awaited) => silence.min(awaited.until),
            Phase::Answering(_) | Phase::Refused | Phase::Ended(_) => silence.min(self.next_from().unwrap_or(silence)),
            Phase::Active => silence.min(self.user.as_ref().and_then(User::check_at).unwrap_or(silence)),
            Phase::LoggingIn(_) => silence,
        }
    }

    /// Handles a timeout.
    pub fn handle_timeout(&mut self, turn: &mut Turn<'_>) {
        if turn.now < self.poll_timeout(turn.rules) {
            return;
        }
        self.advance(turn);
        match (&self.phase, self.dialect) {
            (Phase::Anonymous(until), _) if *until <= turn.now => {
                return turn.actions.push(Action::Close(CloseReason::LogInTimeout));
            }
            (Phase::Awaiting(awaited), _) if awaited.until <= turn.now => {
                return turn.actions.push(Action::Close(awaited.otherwise));
            }
            (Phase::Ended(reason), _) if self.next_from().is_some_and(|at| at <= turn.now) => {
                return turn.actions.push(Action::Close(*reason));
            }
            (Phase::Active, _) => {
                if let Some(user) = &mut self.user
                    && let Some(at) = user.check_at()
                    && at <= turn.now
                {
                    if at + CHECK_LATE <= turn.now {
                        user.doubt();
                    }
                    user.set_check_at(None);
                    turn.actions.push(Action::Check(user.credentials()));
                }
            }
            _ => {}
        }
        let due = self.silent_until(turn.rules);
        if turn.now < due {
            return;
        }
        let late = u32::try_from(turn.now - due).unwrap_or(u32::MAX);
        match self.dialect {
            Dialect::Json if !self.pinged => {
                (self.pinged, self.late) = (true, late);
                turn.actions.push(Action::Ping);
            }
            Dialect::SocketIo(Version::V4) if !self.pinged => {
                (self.pinged, self.late) = (true, late);
                self.outgoing.push(|out| out.push(b'2'));
            }
            _ => turn.actions.push(Action::Close(CloseReason::PingTimeout)),
        }
    }

    /// Returns until when the client may be silent. Then a ping, or the close, is due.
    fn silent_until(&self, rules: &Rules) -> Millis {
        let late = Millis::from(self.late);
        match self.dialect {
            Dialect::SocketIo(Version::V4) if !self.pinged => self.heard + rules.ping_interval,
            Dialect::SocketIo(version) => self.heard + rules.ping_interval + late + rules.ping_timeout(version),
            Dialect::Json if self.pinged => self.heard + JSON_PING_AFTER + late + JSON_PONG_WITHIN,
            Dialect::Json => self.heard + JSON_PING_AFTER,
        }
    }
}
