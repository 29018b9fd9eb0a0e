//! Deadlines of a session, and the pings that detect dead clients.

use super::Session;
use super::action::{Action, SessionContext};
use super::phase::Phase;
use super::rules::{Dialect, Rules};
use super::user::User;
use crate::state::metrics::CloseReason;
use crate::state::timers::Millis;
use crate::wire::engine_io::Version;

/// `howler.v1`: silence after which a client is pinged, in milliseconds.
const JSON_PING_INTERVAL: Millis = 25_000;
/// `howler.v1`: time for the pong, in milliseconds.
const JSON_PONG_TIMEOUT: Millis = 20_000;
/// Delay of a check after which the cookie may have expired, in milliseconds. Checks are late if
/// the server was stopped.
const CHECK_LATE: Millis = 5_000;

impl Session {
    /// Returns when [`Session::handle_timeout`] is due.
    pub fn poll_timeout(&self, rules: &Rules) -> Millis {
        let silence = self.silent_until(rules);
        match self.phase {
            Phase::Anonymous(until) => silence.min(until),
            Phase::AwaitingConnect(ref awaited) => silence.min(awaited.until),
            Phase::AnswerPending(_) | Phase::Refused | Phase::Ended(_) => {
                silence.min(self.next_packet_time().unwrap_or(silence))
            }
            Phase::Active => silence.min(self.user.as_ref().and_then(User::check_at).unwrap_or(silence)),
            Phase::LoggingIn(_) => silence,
        }
    }

    /// Handles a timeout.
    pub fn handle_timeout(&mut self, context: &mut SessionContext<'_>) {
        if context.now < self.poll_timeout(context.rules) {
            return;
        }
        self.advance(context);
        match (&self.phase, self.dialect) {
            (Phase::Anonymous(until), _) if *until <= context.now => {
                return context.actions.push(Action::Close(CloseReason::LogInTimeout));
            }
            (Phase::AwaitingConnect(awaited), _) if awaited.until <= context.now => {
                return context.actions.push(Action::Close(awaited.timeout_reason));
            }
            (Phase::Ended(reason), _) if self.next_packet_time().is_some_and(|at| at <= context.now) => {
                return context.actions.push(Action::Close(*reason));
            }
            (Phase::Active, _) => {
                if let Some(user) = &mut self.user
                    && let Some(at) = user.check_at()
                    && at <= context.now
                {
                    if at + CHECK_LATE <= context.now {
                        user.doubt();
                    }
                    user.set_check_at(None);
                    context.actions.push(Action::Check(user.credentials()));
                }
            }
            _ => {}
        }
        let due = self.silent_until(context.rules);
        if context.now < due {
            return;
        }
        let late = u32::try_from(context.now - due).unwrap_or(u32::MAX);
        match self.dialect {
            Dialect::Json if !self.ping_pending => {
                (self.ping_pending, self.ping_delay) = (true, late);
                context.actions.push(Action::Ping);
            }
            Dialect::SocketIo(Version::V4) if !self.ping_pending => {
                (self.ping_pending, self.ping_delay) = (true, late);
                self.outgoing.push(|out| out.push(b'2'));
            }
            _ => context.actions.push(Action::Close(CloseReason::PingTimeout)),
        }
    }

    /// Returns until when the client may be silent. Then a ping, or the close, is due.
    fn silent_until(&self, rules: &Rules) -> Millis {
        let late = Millis::from(self.ping_delay);
        match self.dialect {
            Dialect::SocketIo(Version::V4) if !self.ping_pending => self.last_seen + rules.ping_interval,
            Dialect::SocketIo(version) => self.last_seen + rules.ping_interval + late + rules.ping_timeout(version),
            Dialect::Json if self.ping_pending => self.last_seen + JSON_PING_INTERVAL + late + JSON_PONG_TIMEOUT,
            Dialect::Json => self.last_seen + JSON_PING_INTERVAL,
        }
    }
}
