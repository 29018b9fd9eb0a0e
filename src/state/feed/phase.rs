//! Phases of the feed.

use crate::state::timers::Millis;
use crate::wire::http::Response;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Create,
    Pin,
    Stream,
}

#[derive(Debug)]
pub(super) enum Phase {
    Waiting { until: Millis },
    Dialing,
    Asking { question: Question, deadline: Millis, head: Option<Response> },
    Streaming { since: Millis, deadline: Millis },
}
