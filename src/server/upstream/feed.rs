//! The feed: its bytes, and what it asks for.

use super::Upstream;
use crate::server::context::Context;
use crate::state::admin_access::AdminUse;
use crate::state::feed::{Continuity, FeedAction, FeedEvent, FeedPart};
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::couchdb::Revision;

/// A step that the feed asks the server for.
#[derive(Debug)]
pub(crate) enum FeedStep {
    Dial,
    Send(Vec<u8>),
    Close,
    /// The start of the first stream is known.
    Pinned,
    /// Changes are followed.
    Opened(Continuity),
}

impl Upstream {
    /// Returns whether the feed delivers changes.
    pub(crate) fn is_streaming(&self) -> bool {
        self.feed.is_streaming()
    }

    /// Returns whether the feed counts as open for the readiness.
    pub(crate) fn is_feed_ready(&self, now: Millis) -> bool {
        self.feed.is_ready(now)
    }

    /// Returns until when changes are known to have been followed.
    pub(crate) fn followed_until(&self) -> Millis {
        self.feed.followed_until()
    }

    /// Handles bytes of the feed: calls `change` for each change in them. Returns how many lines
    /// were skipped.
    pub(crate) fn handle_feed_bytes(
        &mut self,
        mut input: &[u8],
        context: &mut Context,
        now: Millis,
        mut change: impl FnMut(&mut Context, &str, ChangeKind, Option<Revision>),
    ) -> u64 {
        let Self { feed, feed_actions: actions, .. } = self;
        let (mut skipped, mut status) = (0, None);
        loop {
            let (used, part) = feed.handle_bytes(input, now, actions);
            input = &input[used..];
            status = feed.take_status().or(status);
            let lines = match part {
                FeedPart::Done => break,
                FeedPart::Nothing => continue,
                FeedPart::Content(lines) => lines,
            };
            let mut place = 0;
            loop {
                let (used, line) = feed.next_line(lines, place, now);
                place += used;
                match line {
                    FeedEvent::Change(name, kind, revision) => change(context, &name, kind, revision),
                    FeedEvent::Nothing => {}
                    FeedEvent::Skipped => skipped += 1,
                    FeedEvent::Done => break,
                    FeedEvent::Malformed => {
                        if !feed.handle_malformed_line(now, actions) {
                            break;
                        }
                        skipped += 1;
                    }
                }
            }
        }
        if status.is_some() {
            self.handle_admin_status(AdminUse::Feed, status, context, now);
        }
        context.metrics.skipped_lines += skipped;
        skipped
    }

    /// Takes the actions of the feed. For each of them, call [`Self::feed_step`].
    pub(crate) fn take_feed_actions(&mut self) -> Vec<FeedAction> {
        std::mem::take(&mut self.feed_actions)
    }

    /// Handles an action of the feed as far as it concerns the credentials. Returns what is left to
    /// do.
    pub(crate) fn feed_step(&mut self, action: FeedAction, context: &mut Context, now: Millis) -> Option<FeedStep> {
        match action {
            FeedAction::Dial | FeedAction::Send(_) if self.defer_feed(now) => Some(FeedStep::Close),
            FeedAction::Dial => Some(FeedStep::Dial),
            FeedAction::Send(request) => {
                self.admin.handle_sent(AdminUse::Feed);
                Some(FeedStep::Send(request))
            }
            FeedAction::Close => {
                self.handle_admin_status(AdminUse::Feed, None, context, now);
                Some(FeedStep::Close)
            }
            FeedAction::Pinned => Some(FeedStep::Pinned),
            FeedAction::Opened(continuity) => {
                self.handle_file_status(200, now);
                Some(FeedStep::Opened(continuity))
            }
            FeedAction::Refused => {
                self.handle_file_status(401, now);
                None
            }
        }
    }
}
