//! Replies to the requests of a session.

use super::Session;
use super::action::Reply;
use crate::state::timers::Millis;
use crate::wire::couchdb::LoginError;
use crate::wire::howler_v1::{self as json, Refused};
use crate::wire::positions::Position;
use crate::wire::security::Refusal;
use crate::wire::socket_io;

/// Consecutive `subscribe` requests over the limit that end a session: such a client ignores the
/// errors.
const MAX_REJECTED_SUBSCRIPTIONS: u8 = 16;

impl Session {
    /// Answers a request that has no result.
    pub fn answer_ok(&mut self, reply: &Reply) {
        match reply {
            Reply::Silent => {}
            Reply::Ack(id) => self.outgoing.push(|out| socket_io::write_ack(out, *id, "{}")),
            Reply::Json(id) => self.outgoing.push(|out| json::write_ok(out, id)),
        }
    }

    /// Answers `subscribe` with the positions of the databases if there are any, those whose
    /// position differs from the client's, and those that the user may not read. Clients that
    /// connected before the epoch was known get it here.
    pub fn answer_subscribed(
        &mut self,
        reply: &Reply,
        positions: Option<&[(&str, Option<Position>)]>,
        changed: &[&str],
        epoch: Option<&str>,
        refused: &[Refused],
    ) {
        self.rejected_subscriptions = 0;
        let Reply::Json(id) = reply else {
            if refused.is_empty() {
                return self.answer_ok(reply);
            }
            return self.answer_error(reply, "ForbiddenError", &refusals(refused));
        };
        let news = epoch.filter(|_| !self.knows_epoch);
        self.knows_epoch |= news.is_some();
        self.outgoing.push(|out| json::write_subscribed(out, id, positions, changed, news, refused));
    }

    /// Answers a `subscribe` none of whose databases the user may read.
    pub fn answer_forbidden(&mut self, reply: &Reply, refused: &[Refused]) {
        match reply {
            Reply::Json(id) => self.outgoing.push(|out| json::write_forbidden(out, id, refused)),
            _ => self.answer_subscribed(reply, None, &[], None, refused),
        }
    }

    /// Answers a `subscribe` over the limit of a client. Returns whether the session is to end
    /// because this happened too often.
    pub fn answer_limit(&mut self, reply: &Reply, message: &str) -> bool {
        self.answer_error(reply, "LimitError", message);
        self.rejected_subscriptions = self.rejected_subscriptions.saturating_add(1);
        self.rejected_subscriptions >= MAX_REJECTED_SUBSCRIPTIONS
    }

    /// Answers a request that may succeed after `retry_after` milliseconds.
    pub fn answer_unavailable(&mut self, reply: &Reply, message: &str, retry_after: Millis) {
        let name = LoginError::Unavailable.name();
        match reply {
            Reply::Json(id) => self.outgoing.push(|out| json::write_error(out, id, name, message, Some(retry_after))),
            _ => self.answer_error(reply, name, message),
        }
    }

    /// Answers a request with an error.
    pub fn answer_error(&mut self, reply: &Reply, name: &str, message: &str) {
        match reply {
            Reply::Silent => {}
            Reply::Ack(id) => self.outgoing.push(|out| socket_io::write_error_ack(out, *id, name, message)),
            Reply::Json(id) => self.outgoing.push(|out| json::write_error(out, id, name, message, None)),
        }
    }
}

/// Returns the text of a Socket.IO acknowledgement for databases that were not subscribed to.
fn refusals(refused: &[Refused]) -> String {
    let of = |why: Refusal| refused.iter().filter(move |(_, one)| *one == why).map(|(name, _)| &**name);
    let forbidden: Vec<&str> = of(Refusal::NotReader).collect();
    let mut texts = Vec::new();
    if !forbidden.is_empty() {
        texts.push(format!("You may not read {}.", forbidden.join(", ")));
    }
    for why in [Refusal::TooLarge, Refusal::NoRoom] {
        texts.extend(of(why).map(|name| format!("{name}: {}.", why.message())));
    }
    texts.join(" ")
}
