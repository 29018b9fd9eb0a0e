//! Use of the server's own credentials at CouchDB: whether CouchDB accepts them, and when they may
//! be sent.
//!
//! CouchDB locks a name for five minutes after five wrong passwords within 300 s, even that of the
//! server's own admin. So the feed and all other requests with these credentials ask this machine
//! before they are sent, and report the reply.
//!
//! ```text
//!                401 or 403 to any request
//!   Accepted ──────────────────────────────▶ Refused: one attempt after 0.5 s, 2 s, 8 s, and
//!       ▲                                       │     at most four within any 300 s
//!       └────────── 200 to an attempt ──────────┘
//! ```
//!
//! When the password changes, all requests in flight are refused. So there are never more of them
//! than CouchDB may refuse.

use std::collections::VecDeque;
use std::fmt;

use crate::state::timers::Millis;

/// Most times that refused credentials are sent within 300 s.
pub const MAX_REFUSALS: usize = 4;
/// Time for which CouchDB counts a wrong password, in milliseconds, and one second for the network.
const WINDOW: Millis = 301_000;
/// Time from a refusal to the next attempt, in milliseconds, by the number of refusals within
/// [`WINDOW`].
const RETRY_AFTER: [Millis; MAX_REFUSALS] = [500, 2_000, 8_000, 0];
/// Most requests of one kind in flight.
const MAX_OF_KIND: usize = 2;

/// Purpose of a request with the credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminUse {
    /// The feed, and the requests before it is open.
    Feed,
    /// Positions, the epoch and facts about CouchDB.
    Lookup,
    /// The users and roles that may read a database.
    Security,
}

/// Change that follows from a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminEvent {
    /// CouchDB has begun to refuse the credentials, with this status.
    Refused(u16),
    /// CouchDB accepts the credentials again.
    Accepted,
}

impl fmt::Display for AdminEvent {
    /// Writes the log line for operators, with advice.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(403) => f.write_str(
                "CouchDB refuses the server's own requests (403): the user in --couchdb_url is locked out for some \
                 minutes after too many wrong passwords, or may not read the feed. Check the name and the password in \
                 --couchdb_url.",
            ),
            Self::Refused(status) => write!(
                f,
                "CouchDB refuses the server's own requests ({status}): the user in --couchdb_url must be a server admin, \
                 with the right password. CouchDB may have locked the name for five minutes. The server sends no \
                 other requests meanwhile, and tries again at most {MAX_REFUSALS} times in 300 s.",
            ),
            Self::Accepted => f.write_str("CouchDB accepts the name and the password in --couchdb_url again."),
        }
    }
}

/// State of the server's own credentials.
#[derive(Debug, Default)]
pub struct AdminAccess {
    is_refused: bool,
    /// Times of the refusals, the earliest first; at most [`MAX_REFUSALS`] and the requests in
    /// flight.
    refusals: VecDeque<Millis>,
    /// Earliest time at which refused credentials are sent again.
    retry_at: Millis,
    /// Requests in flight, by use.
    under_way: [usize; 3],
    /// Requests in flight with older credentials, which may still be refused.
    outdated: usize,
    /// Refusals that may concern the request instead of the credentials.
    ambiguous: usize,
}

impl AdminAccess {
    /// Returns whether CouchDB refuses the credentials.
    pub fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Returns whether a request may be sent now. For the feed see [`Self::may_try`].
    pub fn may_ask(&self, what: AdminUse, now: Millis) -> bool {
        self.has_room(what, self.recent(now))
    }

    /// Returns whether a request may be sent later without another reply before. If not, checking
    /// again makes no sense before that reply.
    pub fn may_ask_soon(&self, what: AdminUse) -> bool {
        self.has_room(what, self.refusals.len())
    }

    fn has_room(&self, what: AdminUse, refusals: usize) -> bool {
        if self.is_refused {
            return false;
        }
        // One attempt is reserved for the feed, which never waits.
        let room = (MAX_REFUSALS - 1).saturating_sub(refusals).max(1);
        let questions = self.under_way[AdminUse::Lookup as usize] + self.under_way[AdminUse::Security as usize];
        questions < room && self.under_way[what as usize] < MAX_OF_KIND
    }

    /// Returns whether the feed, or a single request in its place, may send the credentials now.
    ///
    /// # Errors
    /// The earliest time at which it may.
    pub fn may_try(&self, now: Millis) -> Result<(), Millis> {
        if self.is_refused && now < self.retry_at { Err(self.retry_at) } else { Ok(()) }
    }

    /// Returns when refused credentials may be sent again. None while they are accepted, and during
    /// an attempt.
    pub fn retry_at(&self) -> Option<Millis> {
        (self.is_refused && self.under_way == [0; 3]).then_some(self.retry_at)
    }

    /// Handles the sending of a request with the credentials.
    pub fn handle_sent(&mut self, what: AdminUse) {
        self.under_way[what as usize] += 1;
    }

    /// Handles the status of a reply; None if there was no reply. Returns the change that follows.
    pub fn handle_answer(&mut self, what: AdminUse, status: Option<u16>, now: Millis) -> Option<AdminEvent> {
        let under_way = &mut self.under_way[what as usize];
        if *under_way == 0 {
            return None;
        }
        *under_way -= 1;
        match status {
            Some(401 | 403) if self.outdated > 0 => {
                self.outdated -= 1;
                None
            }
            Some(status @ (401 | 403)) => {
                self.note_refusal(now);
                (!std::mem::replace(&mut self.is_refused, true)).then_some(AdminEvent::Refused(status))
            }
            // CouchDB checks the password before anything else.
            Some(200..500) => {
                self.ambiguous = 0;
                std::mem::replace(&mut self.is_refused, false).then_some(AdminEvent::Accepted)
            }
            // CouchDB may have counted a wrong password.
            _ if self.is_refused => {
                self.note_refusal(now);
                None
            }
            _ => None,
        }
    }

    /// Handles a refusal (401, 403) of a request that hosts and proxies may refuse for every user.
    /// Another request has to show whether it concerns the credentials. If so, this refusal counts
    /// too.
    pub fn handle_ambiguous(&mut self, what: AdminUse) {
        let under_way = &mut self.under_way[what as usize];
        *under_way = under_way.saturating_sub(1);
        self.ambiguous = (self.ambiguous + 1).min(MAX_REFUSALS);
    }

    /// Handles new credentials, which may be sent at once.
    pub fn handle_credentials(&mut self) {
        let Self { under_way, .. } = std::mem::take(self);
        (self.under_way, self.outdated) = (under_way, under_way.iter().sum());
    }

    fn note_refusal(&mut self, now: Millis) {
        self.refusals.retain(|at| now < at + WINDOW);
        let times = 1 + std::mem::take(&mut self.ambiguous);
        self.refusals.extend(std::iter::repeat_n(now, times));
        let count = self.refusals.len();
        let gap = RETRY_AFTER[(count - 1).min(MAX_REFUSALS - 1)];
        let earlier = count.checked_sub(MAX_REFUSALS).map(|place| self.refusals[place] + WINDOW);
        self.retry_at = (now + gap).max(earlier.unwrap_or(0));
    }

    fn recent(&self, now: Millis) -> usize {
        self.refusals.iter().filter(|at| now < **at + WINDOW).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether there are more than four of these times within any 300 s.
    fn is_too_much(sent: &[Millis]) -> bool {
        sent.windows(MAX_REFUSALS + 1).any(|some| some[MAX_REFUSALS] - some[0] <= 300_000)
    }

    #[test]
    fn refused_credentials_are_sent_four_times_in_any_300_s() {
        let mut access = AdminAccess::default();
        let (mut now, mut sent) = (10, Vec::new());
        for _ in 0..40 {
            assert_eq!(access.may_try(now), Ok(()));
            access.handle_sent(AdminUse::Feed);
            sent.push(now);
            let event = access.handle_answer(AdminUse::Feed, Some(401), now + 3);
            assert_eq!(event, (sent.len() == 1).then_some(AdminEvent::Refused(401)), "it is reported once");
            assert!(!access.may_ask(AdminUse::Lookup, now + 3) && !access.may_ask(AdminUse::Security, now + 3));
            assert_eq!(access.may_try(now + 3), Err(access.retry_at().unwrap()));
            now = access.retry_at().unwrap();
        }
        assert!(!is_too_much(&sent), "{sent:?}");
        assert!(sent[3] - sent[0] < 15_000, "a corrected password is noticed soon: {sent:?}");
        access.handle_sent(AdminUse::Feed);
        assert_eq!(access.handle_answer(AdminUse::Feed, Some(200), now), Some(AdminEvent::Accepted));
        assert!(access.retry_at().is_none() && access.may_ask(AdminUse::Lookup, now));
    }

    #[test]
    fn requests_in_flight_never_exceed_the_permitted_refusals() {
        let mut access = AdminAccess::default();
        let mut sent = Vec::new();
        for round in 0..20 {
            for what in [AdminUse::Lookup, AdminUse::Security] {
                if access.may_ask(what, round) {
                    access.handle_sent(what);
                    sent.push(what);
                }
            }
        }
        // The feed breaks and is opened meanwhile.
        assert_eq!(access.may_try(20), Ok(()));
        access.handle_sent(AdminUse::Feed);
        sent.push(AdminUse::Feed);
        assert!(sent.len() <= MAX_REFUSALS && sent.contains(&AdminUse::Lookup) && sent.contains(&AdminUse::Security));
        let events: Vec<_> = sent.iter().filter_map(|what| access.handle_answer(*what, Some(401), 30)).collect();
        assert_eq!(events, [AdminEvent::Refused(401)]);
        assert!(access.retry_at().unwrap() > 300_000);
    }

    #[test]
    fn unanswered_attempts_count_only_while_the_credentials_are_refused() {
        let mut access = AdminAccess::default();
        for now in 0..20 {
            access.handle_sent(AdminUse::Feed);
            assert_eq!(access.handle_answer(AdminUse::Feed, None, now), None);
            access.handle_sent(AdminUse::Feed);
            assert_eq!(access.handle_answer(AdminUse::Feed, Some(500), now), None);
        }
        assert_eq!(access.may_try(20), Ok(()));
        let mut sent = Vec::new();
        let mut now = 1_000;
        for status in [Some(403), None, None, None, None, Some(401)] {
            access.handle_sent(AdminUse::Feed);
            sent.push(now);
            let event = access.handle_answer(AdminUse::Feed, status, now);
            assert_eq!(event, (sent.len() == 1).then_some(AdminEvent::Refused(403)));
            now = access.retry_at().unwrap();
        }
        assert!(!is_too_much(&sent), "{sent:?}");
    }

    #[test]
    fn new_credentials_are_sent_at_once() {
        let mut access = AdminAccess::default();
        for now in 0..4 {
            access.handle_sent(AdminUse::Feed);
            access.handle_answer(AdminUse::Feed, Some(401), now);
        }
        access.handle_sent(AdminUse::Security);
        access.handle_credentials();
        assert!(access.may_try(5).is_ok() && access.may_ask(AdminUse::Lookup, 5));
        // The refused request carried the old credentials.
        assert_eq!(access.handle_answer(AdminUse::Security, Some(401), 6), None);
        access.handle_sent(AdminUse::Feed);
        assert_eq!(access.handle_answer(AdminUse::Feed, Some(401), 7), Some(AdminEvent::Refused(401)));
    }

    #[test]
    fn ambiguous_refusals_count_once_another_request_is_refused_too() {
        let mut access = AdminAccess::default();
        for _ in 0..10 {
            access.handle_sent(AdminUse::Lookup);
            access.handle_ambiguous(AdminUse::Lookup);
            access.handle_sent(AdminUse::Lookup);
            assert_eq!(access.handle_answer(AdminUse::Lookup, Some(200), 1), None);
            assert!(!access.is_refused() && access.may_ask(AdminUse::Lookup, 1));
        }
        // With two of them and the request that confirms the refusal, one attempt is left.
        for _ in 0..2 {
            access.handle_sent(AdminUse::Lookup);
            access.handle_ambiguous(AdminUse::Lookup);
        }
        access.handle_sent(AdminUse::Lookup);
        assert_eq!(access.handle_answer(AdminUse::Lookup, Some(401), 10), Some(AdminEvent::Refused(401)));
        let at = access.retry_at().unwrap();
        assert!(at < 20_000);
        access.handle_sent(AdminUse::Feed);
        access.handle_answer(AdminUse::Feed, Some(401), at);
        assert!(access.retry_at().unwrap() > 300_000);
    }

    #[test]
    fn a_reply_without_a_request_is_ignored() {
        let mut access = AdminAccess::default();
        assert_eq!(access.handle_answer(AdminUse::Feed, Some(401), 1), None);
        assert!(!access.is_refused());
    }

    #[test]
    fn the_log_line_names_the_option_to_change() {
        for status in [401, 403] {
            let text = AdminEvent::Refused(status).to_string();
            assert!(text.contains("--couchdb_url") && text.contains(&format!("({status})")) && !text.contains("  "));
        }
    }
}
