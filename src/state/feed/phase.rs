//! Phases of the feed.

use crate::state::timers::Millis;
use crate::wire::http::Response;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Create,
    Pin,
    Stream,
}

#[derive(Debug)]
pub(super) enum Phase {
    Waiting { until: Millis },
    Dialing,
    Requesting { kind: RequestKind, deadline: Millis, head: Option<Response> },
    Streaming { since: Millis, deadline: Millis },
}
