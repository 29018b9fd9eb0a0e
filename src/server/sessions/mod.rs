//! The sessions, those to be written to, and the limits of logins.

use super::flush::Frames;
use super::purpose::Login;
use super::settings::Settings;
use crate::state::log_throttle::{LogThrottle, MINUTE};
use crate::state::login_limits::LoginLimits;
use crate::state::session::{Action, Rules, Session};
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::state::user_quotas::UserQuotas;

/// The owner of all sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) table: Table<Session>,
    pub(super) rules: Rules,
    /// Actions of the session at hand.
    pub(super) actions: Vec<Action>,
    /// Sessions that have something to be written.
    pub(super) dirty: Vec<Key>,
    /// Those that are written to before them, the last first.
    pub(super) flushing: Vec<Key>,
    pub(super) frames: Frames,
    pub(super) user_totals: UserQuotas,
    pub(super) login_limits: LoginLimits<Login>,
    /// How often sessions are checked, in milliseconds; 0 for never.
    pub(super) session_check: Millis,
    /// How long CouchDB's cookies live, in milliseconds, by the last one that said so.
    pub(super) cookie_life: Option<Millis>,
    /// Throttles the line about sessions that get no random id.
    pub(super) randomness_log: LogThrottle,
}

impl Sessions {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            table: Table::default(),
            rules: settings.rules,
            actions: Vec::new(),
            dirty: Vec::new(),
            flushing: Vec::new(),
            frames: Frames::default(),
            user_totals: UserQuotas::new(settings.limits.subscriptions_per_user),
            login_limits: LoginLimits::new(settings.limits.login_queue),
            session_check: settings.session_check,
            cookie_life: None,
            randomness_log: LogThrottle::new(MINUTE),
        }
    }
}
