//! The owner of the sessions: their table, the dirty list, the limits of logins and the totals of
//! users.
//!
//! A session is a state machine (`state/session`): it takes inputs and returns [`Action`]s, which
//! the server performs.
//!
//! | file | content |
//! |---|---|
//! | `dirty.rs` | sessions that have something to send |
//! | `frames.rs` | encoded notifications |
//! | `polling.rs` | requests of polling sessions |
//! | `logins.rs` | limits of logins, when sessions are checked again |

mod dirty;
mod frames;
mod logins;
mod polling;

use std::convert::Infallible;

use self::dirty::Dirty;
use self::frames::Frames;
use super::context::Context;
use super::ids::Handle;
use super::purpose::Login;
use super::settings::Settings;
use crate::state::log_throttle::{LogThrottle, MINUTE};
use crate::state::login_limits::LoginLimits;
use crate::state::monitoring::SessionCounts;
use crate::state::session::{Action, Opening, Rules, Session, SessionContext, TAG, Transport};
use crate::state::subscriptions::SessionIndex;
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::state::unauthenticated::{Holding, Kind, Stage};
use crate::state::user_quotas::UserQuotas;
use crate::wire::couchdb::Credentials;
use crate::wire::engine_io::{SID_LENGTH, Sid, Version};

/// The owner of all sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    table: Table<Session>,
    rules: Rules,
    /// Actions of the session that takes an input.
    actions: Vec<Action>,
    dirty: Dirty,
    frames: Frames,
    user_quotas: UserQuotas,
    login_limits: LoginLimits<Login>,
    /// Longest time between checks of a session, in milliseconds; 0 for no checks.
    session_check: Millis,
    /// Lifetime of CouchDB's cookies in milliseconds, as the last cookie with a lifetime had it.
    cookie_life: Option<Millis>,
    /// Throttles the line about sessions that get no random id.
    randomness_log: LogThrottle,
}

impl Sessions {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            table: Table::default(),
            rules: settings.rules,
            actions: Vec::new(),
            dirty: Dirty::default(),
            frames: Frames::default(),
            user_quotas: UserQuotas::new(settings.limits.subscriptions_per_user),
            login_limits: LoginLimits::new(settings.limits.login_queue),
            session_check: settings.session_check,
            cookie_life: None,
            randomness_log: LogThrottle::new(MINUTE),
        }
    }

    /// Returns whether sessions are to be written to without waiting for an event.
    pub(super) fn has_work(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.table.keys().collect()
    }

    pub(super) fn get(&self, key: Key) -> Option<&Session> {
        self.table.get(key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Session> {
        self.table.get_mut(key)
    }

    /// Returns the session in a slot.
    pub(super) fn key_at(&self, index: SessionIndex) -> Option<Key> {
        self.table.key_at(index)
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Opens a `howler.v1` session on a WebSocket.
    pub(super) fn open_json(&mut self, connection: Key, epoch: Option<&str>, now: Millis) -> Key {
        let mut turn = SessionContext { now, rules: &self.rules, actions: &mut self.actions };
        self.table.insert(Session::open_json(connection, epoch, &mut turn))
    }

    /// Opens a Socket.IO session. Returns None when the system has no randomness for its id.
    pub(super) fn open_socket_io(
        &mut self,
        version: Version,
        credentials: Credentials,
        transport: Transport,
        now: Millis,
    ) -> Option<Key> {
        let mut tag = [0; TAG];
        if let Err(error) = crate::net::tls::random_bytes(&mut tag) {
            let (level, more) = self.randomness_log.level(log::Level::Error, now);
            log::log!(level, "No session can be opened: {error}{more}");
            return None;
        }
        let Self { table, rules, actions, .. } = self;
        let opened = table.try_insert_with(|key| {
            let opening = Opening { version, sid: sid_of(key, tag), tag, credentials, transport };
            Ok::<_, Infallible>(Session::open_socket_io(opening, &mut SessionContext { now, rules, actions }))
        });
        Some(opened.unwrap_or_else(|never| match never {}))
    }

    /// Hands an input to a session; its actions are taken by [`Self::take_actions`]. Returns false
    /// without the session.
    pub(super) fn input(
        &mut self,
        key: Key,
        now: Millis,
        input: impl FnOnce(&mut Session, &mut SessionContext<'_>),
    ) -> bool {
        let Some(session) = self.table.get_mut(key) else { return false };
        input(session, &mut SessionContext { now, rules: &self.rules, actions: &mut self.actions });
        true
    }

    /// Takes the actions of the session that took an input.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Gives the emptied list of actions back, so that its capacity is used again, unless there are
    /// new actions.
    pub(super) fn put_actions(&mut self, actions: Vec<Action>) {
        if self.actions.is_empty() {
            self.actions = actions;
        }
    }

    /// Enters the deadline of a session in the timers.
    pub(super) fn arm(&mut self, key: Key, context: &mut Context, now: Millis) {
        if let Some(session) = self.table.get_mut(key) {
            let deadline = session.poll_timeout(&self.rules);
            context.timers.arm(Handle::Session(key), &mut session.alarm, deadline, now);
        }
    }

    /// Returns whether an entry of the timers is the latest one of its session.
    pub(super) fn is_due(&mut self, key: Key, bucket: Millis) -> bool {
        self.table.get_mut(key).is_some_and(|session| session.alarm.fired(bucket))
    }

    /// Decides whether a client may send one more message now. `is_heard` when the message shows
    /// that it is there.
    pub(super) fn admit_message(&mut self, key: Key, is_heard: bool, now: Millis) -> bool {
        let Some(session) = self.table.get_mut(key) else { return true };
        if !session.allows_message(&self.rules, now) {
            return false;
        }
        if is_heard {
            session.handle_activity(now);
        }
        true
    }

    /// Has a session written to at the end of the turn.
    pub(super) fn mark_dirty(&mut self, key: Key) {
        self.dirty.push(key);
    }

    /// Has sessions written to at the end of the turn.
    pub(super) fn mark_notified(&mut self, few: &mut Vec<SessionIndex>, bulk: &mut Vec<SessionIndex>) {
        let Self { table, dirty, .. } = self;
        few.drain(..).filter_map(|index| table.key_at(index)).for_each(|key| dirty.push(key));
        bulk.drain(..).filter_map(|index| table.key_at(index)).for_each(|key| dirty.push_bulk(key));
    }

    /// Decides how many sessions to write to in this turn.
    pub(super) fn begin_flush(&mut self) {
        self.dirty.begin_flush();
    }

    /// Takes the next session to write to in this turn.
    pub(super) fn next_dirty(&mut self) -> Option<Key> {
        self.dirty.pop()
    }

    /// Returns a session and the frames of this turn.
    pub(super) fn session_and_frames(&mut self, key: Key) -> Option<(&mut Session, &mut Frames)> {
        self.table.get_mut(key).map(|session| (session, &mut self.frames))
    }

    /// Forgets the frames at the end of a turn.
    pub(super) fn clear_frames(&mut self) {
        self.frames.clear();
    }

    /// Takes a session out of the table. Its slot stays reserved until [`Self::release`].
    pub(super) fn remove(&mut self, key: Key) -> bool {
        self.table.remove_and_reserve(key).is_some()
    }

    /// Frees the slot of a removed session.
    pub(super) fn release(&mut self, index: SessionIndex) {
        self.table.release(index);
    }

    /// Returns a session and the totals of users.
    pub(super) fn session_and_totals(&mut self, key: Key) -> Option<(&mut Session, &UserQuotas)> {
        self.table.get_mut(key).map(|session| (session, &self.user_quotas))
    }

    /// Returns the totals of users.
    pub(super) fn user_quotas(&self) -> &UserQuotas {
        &self.user_quotas
    }

    /// Returns the limit of subscriptions of a session's user if `count` of the session exceed it.
    pub(super) fn exceeded_user_limit(&self, key: Key, count: usize) -> Option<usize> {
        self.user_quotas.exceeded(key, self.table.get(key)?.user_name()?, count)
    }

    /// Updates the number of a session's subscriptions in the total of its user.
    pub(super) fn recount_user(&mut self, key: Key, count: usize) {
        let Some(session) = self.table.get(key) else { return };
        self.user_quotas.update(key, session.user_name(), count);
    }

    /// Removes a session from the total of its user.
    pub(super) fn uncount_user(&mut self, key: Key) {
        self.user_quotas.update(key, None, 0);
    }

    /// Returns the stage of a session, None for a logged-in one, and the bytes that it holds.
    pub(super) fn stage_and_bytes(&self, key: Key) -> (Option<Stage>, usize) {
        self.table.get(key).map_or((Some(Stage::Idle), 0), |session| (session.stage(), session.held_bytes()))
    }

    /// Determines what an unauthenticated polling session holds, None for every other one, and
    /// whether it was listed before.
    pub(super) fn review(&mut self, key: Key) -> Option<(bool, Option<Holding>)> {
        let session = self.table.get_mut(key)?;
        let holding = match (&session.transport, session.stage()) {
            (Transport::Polling(polling), Some(stage)) => {
                Some(Holding { address: polling.client, kind: Kind::Session, stage, bytes: session.held_bytes() })
            }
            _ => None,
        };
        Some((std::mem::replace(&mut session.listed, holding.is_some()), holding))
    }

    /// Takes a session off the list of unauthenticated clients. Returns whether it was on it.
    pub(super) fn unlist(&mut self, key: Key) -> bool {
        self.table.get_mut(key).is_some_and(|session| std::mem::take(&mut session.listed))
    }

    /// Returns the sessions by dialect, transport and login.
    pub(super) fn counts(&self) -> SessionCounts {
        let mut counts = SessionCounts::default();
        self.table.keys().filter_map(|key| self.table.get(key)).for_each(|session| counts.count(session));
        counts
    }

    /// Answers a Socket.IO CONNECT with an id, which nothing is looked up by.
    pub(super) fn confirm_connect(&mut self, key: Key) {
        let mut id = [0; SID_LENGTH];
        // Without randomness the id is zero, which does no harm.
        let _ = crate::net::tls::random_bytes(&mut id);
        if let Some(session) = self.table.get_mut(key) {
            session.confirm_connect(Sid(id));
        }
    }
}

/// Returns the id under which clients find a session.
fn sid_of(key: Key, tag: [u8; TAG]) -> Sid {
    let mut sid = [0; SID_LENGTH];
    sid[..4].copy_from_slice(&key.index.to_be_bytes());
    sid[4..8].copy_from_slice(&key.generation.to_be_bytes());
    sid[8..].copy_from_slice(&tag);
    Sid(sid)
}
