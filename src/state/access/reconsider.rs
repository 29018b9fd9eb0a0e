//! Deciding subscriptions again after a new verdict or other roles.

use super::Access;
use super::step::{Pass, Step};
use crate::state::subscriptions::Subscriptions;
use crate::state::table::Key;

impl Access {
    /// Starts to decide all subscriptions of a session again, because its user's roles have
    /// changed. The session is not written to until that is done.
    pub fn reconsider_session(&mut self, session: Key, subscriptions: &Subscriptions) {
        if self.is_restricted() && self.withheld.insert(session) {
            self.passes.push_back(Pass::Session(session, subscriptions.count(session.index)));
        } else if self.withheld.contains(&session) {
            // The roles have changed again during the pass.
            for pass in &mut self.passes {
                if let Pass::Session(one, left) = pass
                    && *one == session
                {
                    *left = subscriptions.count(session.index);
                }
            }
        }
    }

    /// Returns whether a session must not be written to yet.
    pub fn is_withheld(&self, session: Key) -> bool {
        !self.withheld.is_empty() && self.withheld.contains(&session)
    }

    /// Returns the next step of deciding subscriptions again. Between two steps subscribers may
    /// come and go: every one of the start is decided, since the last one takes the place of one
    /// that goes.
    pub fn next_step(&mut self, subscriptions: &Subscriptions) -> Option<Step> {
        while let Some(pass) = self.passes.front_mut() {
            match pass {
                Pass::Database(database) => {
                    let database = *database;
                    let step = self.entries.get_mut(&database).and_then(|entry| {
                        let left = entry.left?.min(subscriptions.subscriber_count(database));
                        entry.left = left.checked_sub(1);
                        match entry.left {
                            Some(next) => Some(Step::Decide(subscriptions.subscriber_at(database, next)?, database)),
                            // A database that came into doubt meanwhile waits for its next verdict.
                            None if entry.in_doubt => None,
                            None => entry.pending_change.take().map(|kind| Step::Notify(database, kind)),
                        }
                    });
                    let goes_on = self.entries.get(&database).is_some_and(|entry| entry.left.is_some());
                    if !goes_on {
                        self.passes.pop_front();
                    }
                    if step.is_some() {
                        return step;
                    }
                }
                Pass::Session(session, left) => {
                    let session = *session;
                    *left = (*left).min(subscriptions.count(session.index));
                    if let Some(next) = left.checked_sub(1) {
                        *left = next;
                        if let Some(database) = subscriptions.subscription_at(session.index, next) {
                            return Some(Step::Decide(session.index, database));
                        }
                        continue;
                    }
                    self.passes.pop_front();
                    if self.withheld.remove(&session) {
                        return Some(Step::Resume(session));
                    }
                }
            }
        }
        None
    }
}
