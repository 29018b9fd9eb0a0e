//! The owner of what is known of databases: who subscribes to them, their positions, and who may
//! read them.
//!
//! Sessions appear here as keys and slots only; where a user's name or roles matter, the caller
//! passes the session in. The sessions to notify are collected in `notified`, which the server
//! takes at the end of each step.
//!
//! | file | content |
//! |---|---|
//! | `changes.rs` | lines of the feed, merge windows, notifications of many databases |
//! | `subscribe.rs` | `subscribe` and `unsubscribe` |
//! | `long_lists.rs` | lists of names that take more than a turn |
//! | `access.rs` | who may read a database |
//! | `positions.rs` | lookups of positions, the epoch |
//! | `resync.rs` | gaps of the feed, restarts of CouchDB, resyncs |
//! | `request.rs`, `errors.rs` | a `subscribe` request, the errors that it may get |
//! | `notified.rs` | the sessions that were notified |
//! | `departures.rs` | subscriptions of sessions that have ended |

mod access;
mod changes;
mod departures;
pub(super) mod errors;
mod long_lists;
mod notified;
pub(super) mod positions;
pub(super) mod request;
mod resync;
mod subscribe;

use std::collections::VecDeque;

use self::notified::Notified;
use super::settings::Settings;
use crate::state::access::Access;
use crate::state::catch_up::CatchUp;
use crate::state::jitter::Jitter;
use crate::state::log_throttle::{LogThrottle, LogThrottles, MINUTE, TEN_MINUTES};
use crate::state::name_lists::NameLists;
use crate::state::positions::Positions;
use crate::state::restarts::Restarts;
use crate::state::resync::{Policy, StaggeredResync};
use crate::state::session::Dialect;
use crate::state::session_cleanup::SessionCleanup;
use crate::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use crate::state::table::Key;
use crate::state::timers::{Millis, Timers};
use crate::wire::couchdb::{ChangeKind, FeedSource};
use crate::wire::{howler_v1, socket_io};

/// Names in the requests of one turn; further requests are read in the next turn. A name costs
/// about half a microsecond.
const NAMES_A_TURN: usize = 2_000;

/// The owner of everything known of databases.
#[derive(Debug)]
pub(super) struct Databases {
    subscriptions: Subscriptions,
    positions: Positions,
    access: Access,
    catch_up: CatchUp,
    restarts: Restarts,
    name_lists: NameLists,
    departures: SessionCleanup,
    /// Slots of the sessions that have become dirty and are to be written to.
    notified: Notified,
    /// Databases whose subscribers are to be notified since a change may have been missed; each is
    /// held once.
    unnotified: VecDeque<DatabaseId>,
    /// Time for which changes of a database are merged, in milliseconds; None where the number of
    /// nodes decides.
    merge_window: Option<Millis>,
    /// Times at which held changes are released.
    merge_timers: Timers<DatabaseId>,
    /// Whether the changes of the feed have positions, which need an epoch.
    needs_epoch: bool,
    /// Time of the next request for the epoch.
    epoch_retry: Option<Millis>,
    /// Whether changes were ever followed.
    followed: bool,
    resync_policy: Policy,
    /// The resync in progress.
    resync: Option<StaggeredResync>,
    /// Time at which sessions last got a resync.
    last_resync: Option<Millis>,
    /// Names in the requests of this turn.
    names_this_turn: usize,
    /// Names in the `subscribe` requests that were answered in this turn.
    answered_this_turn: usize,
    /// Subscriptions of ended sessions that were removed in this turn.
    ended_this_turn: usize,
    /// Throttles the lines about answers that do not say who may read a database, by their cause.
    security_log: LogThrottles<&'static str>,
    /// Throttles the line about another epoch.
    epoch_log: LogThrottle,
    /// Throttles the lines about resyncs, by their reason.
    resync_log: LogThrottles<&'static str>,
}

/// Numbers of the databases for the metrics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) subscriptions: usize,
    pub(super) databases: usize,
    /// Database names in memory.
    pub(super) names: usize,
    /// Positions that are remembered for clients that may come back.
    pub(super) remembered: usize,
    /// Questions about access that wait, and bytes of `_security` objects.
    pub(super) access: (usize, usize),
}

impl Databases {
    pub(super) fn new(settings: &Settings) -> Self {
        let has_revisions = settings.feed.source == FeedSource::GlobalChanges;
        Self {
            subscriptions: Subscriptions::new(settings.limits.subscriptions),
            positions: Positions::new(has_revisions),
            access: Access::new(settings.access),
            catch_up: CatchUp::new(settings.catch_up_for),
            restarts: Restarts::new(Jitter::new(settings.seed.rotate_left(16))),
            name_lists: NameLists::default(),
            departures: SessionCleanup::default(),
            notified: Notified::default(),
            unnotified: VecDeque::new(),
            merge_window: settings.merge_window,
            merge_timers: Timers::default(),
            needs_epoch: has_revisions,
            epoch_retry: None,
            followed: false,
            resync_policy: settings.resync,
            resync: None,
            last_resync: None,
            names_this_turn: 0,
            answered_this_turn: 0,
            ended_this_turn: 0,
            security_log: LogThrottles::new(TEN_MINUTES),
            epoch_log: LogThrottle::new(MINUTE),
            resync_log: LogThrottles::new(MINUTE),
        }
    }

    /// Starts the budgets of a turn.
    pub(super) fn begin_turn(&mut self) {
        (self.names_this_turn, self.answered_this_turn, self.ended_this_turn) = (0, 0, 0);
    }

    /// Returns whether the requests of this turn had as many names as there is time for.
    pub(super) fn is_turn_full(&self) -> bool {
        self.names_this_turn >= NAMES_A_TURN
    }

    /// Returns whether the next turn has work without waiting for an event.
    pub(super) fn has_work(&self) -> bool {
        !self.unnotified.is_empty()
            || !self.departures.is_empty()
            || self.access.has_work()
            || self.positions.has_work()
            || self.name_lists.has_work()
    }

    /// Returns when the next turn is due. `may_look_up` says whether CouchDB may be asked.
    pub(super) fn poll_timeout(&self, may_look_up: bool) -> Option<Millis> {
        let due = [
            self.access.poll_timeout(),
            self.positions.poll_timeout(),
            self.resync.as_ref().and_then(StaggeredResync::poll_timeout),
            self.catch_up.poll_timeout(),
            self.merge_timers.poll_timeout(),
            self.epoch_retry,
            self.restarts.poll_timeout().filter(|_| may_look_up),
        ];
        due.into_iter().flatten().min()
    }

    /// Handles deadlines that need nothing of other owners.
    pub(super) fn handle_timeout(&mut self, now: Millis) {
        if self.access.poll_timeout().is_some_and(|at| at <= now) {
            self.access.handle_timeout(now, &mut self.subscriptions);
        }
        self.catch_up.handle_timeout(now, &mut self.subscriptions);
    }

    /// Returns the sessions that are to be written to: subscribers of databases with few, and of
    /// those with many. The caller empties both.
    pub(super) fn notified(&mut self) -> (&mut Vec<SessionIndex>, &mut Vec<SessionIndex>) {
        (&mut self.notified.few, &mut self.notified.bulk)
    }

    /// Takes the next notification of a session.
    pub(super) fn next_notification(&mut self, session: SessionIndex) -> Option<(DatabaseId, ChangeKind)> {
        self.subscriptions.take_dirty(session)
    }

    /// Returns whether a session has notifications left.
    pub(super) fn has_notifications(&self, session: SessionIndex) -> bool {
        self.subscriptions.is_dirty(session)
    }

    /// Writes the message of a notification.
    pub(super) fn write_change(&self, out: &mut Vec<u8>, database: DatabaseId, kind: ChangeKind, dialect: Dialect) {
        let name = self.subscriptions.name(database);
        match dialect {
            Dialect::SocketIo(_) => socket_io::write_change(out, name),
            Dialect::Json => {
                howler_v1::write_change(out, name, kind, self.access.notified_position(database, &self.subscriptions));
            }
        }
    }

    /// Returns whether nothing may be written to a session yet.
    pub(super) fn is_withheld(&self, session: Key) -> bool {
        self.name_lists.is_withheld(session) || self.access.is_withheld(session)
    }

    /// Returns the number of a session's subscriptions.
    pub(super) fn count(&self, session: Key) -> usize {
        self.subscriptions.count(session.index)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            subscriptions: self.subscriptions.total(),
            databases: self.subscriptions.watched(),
            names: self.subscriptions.databases(),
            remembered: self.catch_up.remembered(),
            access: (self.access.queued_lookups(), self.access.security_bytes()),
        }
    }
}
