//! The databases: who subscribes to them, where they stand, and who may read them.

use std::collections::VecDeque;

use super::settings::Settings;
use crate::state::access::Access;
use crate::state::catch_up::CatchUp;
use crate::state::departures::Departures;
use crate::state::jitter::Jitter;
use crate::state::log_throttle::{LogThrottle, LogThrottles, MINUTE, TEN_MINUTES};
use crate::state::name_lists::NameLists;
use crate::state::positions::Positions;
use crate::state::restarts::Restarts;
use crate::state::resync::{Policy, StaggeredResync};
use crate::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use crate::state::timers::{Millis, Timers};
use crate::wire::couchdb::FeedSource;

/// The owner of everything known about databases.
#[derive(Debug)]
pub(super) struct Databases {
    pub(super) subscriptions: Subscriptions,
    pub(super) positions: Positions,
    pub(super) access: Access,
    /// Throttles the lines about answers that do not say who may read a database, by their cause.
    pub(super) security_log: LogThrottles<&'static str>,
    pub(super) catch_up: CatchUp,
    pub(super) restarts: Restarts,
    /// For how long changes of a database are merged, in milliseconds; None where the number of nodes decides.
    pub(super) merge_window: Option<Millis>,
    /// When changes of databases are released that were held back.
    pub(super) merge_timers: Timers<DatabaseId>,
    /// Whether the feed is one whose changes have positions.
    pub(super) asks_epoch: bool,
    /// When to ask again for the epoch.
    pub(super) epoch_retry: Option<Millis>,
    /// Throttles the line about another epoch.
    pub(super) epoch_log: LogThrottle,
    /// Whether changes were ever followed.
    pub(super) followed: bool,
    pub(super) resync: Policy,
    /// Throttles the lines about resyncs, by their reason.
    pub(super) resync_log: LogThrottles<&'static str>,
    pub(super) pending_resync: Option<StaggeredResync>,
    /// Time of the last notification of a resync.
    pub(super) last_resync_at: Option<Millis>,
    pub(super) name_lists: NameLists,
    pub(super) departures: Departures,
    /// Databases whose subscribers are to be notified, each held once: it is not known whether they changed.
    pub(super) unnotified: VecDeque<DatabaseId>,
    pub(super) woken: Vec<SessionIndex>,
    /// Names in the requests of this turn.
    pub(super) names_this_turn: usize,
    /// Names in the `subscribe` requests that were answered in this turn.
    pub(super) answered_this_turn: usize,
    /// Subscriptions of sessions that have ended which ended in this turn.
    pub(super) ended_this_turn: usize,
}

impl Databases {
    pub(super) fn new(settings: &Settings) -> Self {
        let has_revisions = settings.feed.source == FeedSource::GlobalChanges;
        Self {
            subscriptions: Subscriptions::new(settings.limits.subscriptions),
            positions: Positions::new(has_revisions),
            access: Access::new(settings.access),
            security_log: LogThrottles::new(TEN_MINUTES),
            catch_up: CatchUp::new(settings.catch_up_for),
            restarts: Restarts::new(Jitter::new(settings.seed.rotate_left(16))),
            merge_window: settings.merge_window,
            merge_timers: Timers::default(),
            asks_epoch: has_revisions,
            epoch_retry: None,
            epoch_log: LogThrottle::new(MINUTE),
            followed: false,
            resync: settings.resync,
            resync_log: LogThrottles::new(MINUTE),
            pending_resync: None,
            last_resync_at: None,
            name_lists: NameLists::default(),
            departures: Departures::default(),
            unnotified: VecDeque::new(),
            woken: Vec::new(),
            names_this_turn: 0,
            answered_this_turn: 0,
            ended_this_turn: 0,
        }
    }
}
