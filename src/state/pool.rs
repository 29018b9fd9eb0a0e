//! A few keep-alive connections to CouchDB and the queue before them: one request a connection at a time,
//! so that a storm of clients becomes a line, and CouchDB has as much to do as it can.
//!
//! Every request has a deadline. It moves along while CouchDB answers others (a long queue is no
//! failure), and does not while CouchDB is silent or away.

use std::collections::VecDeque;

use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::http::Response;
use crate::wire::response::{Part, ResponseReader};
use crate::wire::secret::Secret;

/// Most requests that wait; one more is refused at once.
pub const MAX_WAITING: usize = 20_000;
/// A request fails when CouchDB answered none for so long, in milliseconds.
const NO_ANSWER_FOR: Millis = 4_500;
/// A request fails when it waited for so long, whatever CouchDB does.
const LONGEST_WAIT: Millis = 30_000;
/// Time from a failed connection to the next try, in milliseconds.
const REDIAL_AFTER: Millis = 250;
/// Longest body of an answer about a session, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// How often a request is sent over new connections that end without an answer to it.
const MAX_ATTEMPTS: u8 = 2;

/// What the pool wants done. `usize` is the number of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum PoolAction<P> {
    /// Connect to CouchDB.
    Dial(usize),
    /// Write this to the connection.
    Send(usize, Vec<u8>),
    /// Give the connection up.
    HangUp(usize),
    /// A request is over; None when CouchDB did not answer it.
    Done(P, Option<Answer>),
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The `AuthSession` cookie that was set.
    pub auth_cookie: Option<Secret>,
    /// The body.
    pub body: Vec<u8>,
}

/// The pool; `P` says what a request is for.
#[derive(Debug)]
pub struct Pool<P> {
    connections: Vec<Connection>,
    /// Longest body of an answer, in bytes.
    max_body: usize,
    max_waiting: usize,
    tickets: Table<Ticket<P>>,
    /// Tickets that wait, oldest first; those that were cancelled are in here still.
    waiting: VecDeque<Key>,
    last_answer: Millis,
    /// After a failed connection, not before this.
    redial_from: Millis,
}

#[derive(Debug)]
struct Ticket<P> {
    purpose: P,
    request: Vec<u8>,
    submitted: Millis,
    /// New connections that ended under it.
    attempts: u8,
}

#[derive(Debug)]
enum Connection {
    Closed,
    Dialing,
    /// `used` when it has carried an answer.
    Idle {
        used: bool,
    },
    Busy(Box<Exchange>),
}

/// A request that was sent.
#[derive(Debug)]
struct Exchange {
    ticket: Key,
    sent: Millis,
    /// Whether the connection had carried an answer before.
    used: bool,
    reader: ResponseReader,
    head: Option<Response>,
    body: Vec<u8>,
}

impl<P> Pool<P> {
    /// A pool of at most `size` connections, with answers of at most `max_body` bytes, and so many requests that wait.
    pub fn new(size: usize, max_body: usize, max_waiting: usize) -> Self {
        let connections = (0..size.max(1)).map(|_| Connection::Closed).collect();
        Self {
            connections,
            max_body,
            max_waiting,
            tickets: Table::default(),
            waiting: VecDeque::new(),
            last_answer: 0,
            redial_from: 0,
        }
    }

    /// Takes a request. The key is good for [`Pool::cancel`]; None when too many wait.
    pub fn submit(
        &mut self,
        request: Vec<u8>,
        purpose: P,
        now: Millis,
        actions: &mut Vec<PoolAction<P>>,
    ) -> Option<Key> {
        if self.waiting.len() >= self.max_waiting && self.tickets.len() < self.waiting.len() {
            // Those that nobody waits for any more take no place from others.
            let Self { waiting, tickets, .. } = self;
            waiting.retain(|ticket| tickets.get(*ticket).is_some());
        }
        if self.waiting.len() >= self.max_waiting {
            return None;
        }
        let ticket = self.tickets.insert(Ticket { purpose, request, submitted: now, attempts: 0 });
        self.waiting.push_back(ticket);
        self.pump(now, actions);
        Some(ticket)
    }

    /// Forgets a request: it is not sent if it was not, and its answer is passed over.
    pub fn cancel(&mut self, ticket: Key) {
        self.tickets.remove(ticket);
    }

    /// What a request is for.
    pub fn purpose(&mut self, ticket: Key) -> Option<&mut P> {
        self.tickets.get_mut(ticket).map(|ticket| &mut ticket.purpose)
    }

    /// Whether a request has been sent and its answer is awaited.
    pub fn is_sent(&self, ticket: Key) -> bool {
        self.connections.iter().any(|one| matches!(one, Connection::Busy(exchange) if exchange.ticket == ticket))
    }

    /// How many requests wait or are under way.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Whether requests wait for a connection.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// When [`Pool::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let waiting = self.waiting.front().map(|ticket| match self.tickets.get(*ticket) {
            Some(ticket) => self.deadline(ticket.submitted).min(self.redial_at()),
            None => 0,
        });
        let busy = self.connections.iter().filter_map(|connection| match connection {
            Connection::Busy(exchange) => Some(self.answer_due(exchange)),
            _ => None,
        });
        busy.chain(waiting).min()
    }

    /// Ends what took too long, and tries again what could not be connected.
    pub fn handle_timeout(&mut self, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        for number in 0..self.connections.len() {
            if let Connection::Busy(exchange) = &self.connections[number]
                && self.answer_due(exchange) <= now
            {
                let ticket = exchange.ticket;
                self.connections[number] = Connection::Closed;
                actions.push(PoolAction::HangUp(number));
                self.finish(ticket, None, actions);
            }
        }
        while let Some(&ticket) = self.waiting.front() {
            match self.tickets.get(ticket) {
                Some(waiting) if now < self.deadline(waiting.submitted) => break,
                _ => self.waiting.pop_front(),
            };
            self.finish(ticket, None, actions);
        }
        self.pump(now, actions);
    }

    /// A connection stands.
    pub fn handle_connected(&mut self, number: usize, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        self.connections[number] = Connection::Idle { used: false };
        self.pump(now, actions);
    }

    /// A connection could not be made, or ended.
    pub fn handle_lost(&mut self, number: usize, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        match std::mem::replace(&mut self.connections[number], Connection::Closed) {
            Connection::Closed | Connection::Idle { .. } => {}
            Connection::Dialing => self.redial_from = now + REDIAL_AFTER,
            Connection::Busy(exchange) if exchange.reader.ends_with_connection() => {
                self.complete(*exchange, now, actions);
            }
            Connection::Busy(exchange) => self.try_again(&exchange, actions),
        }
        self.pump(now, actions);
    }

    /// Takes what a connection gave.
    pub fn handle_bytes(&mut self, number: usize, mut input: &[u8], now: Millis, actions: &mut Vec<PoolAction<P>>) {
        loop {
            let Connection::Busy(exchange) = &mut self.connections[number] else {
                // An answer to no question: whose answer the next one is could not be told.
                if !input.is_empty() {
                    self.hang_up(number, actions);
                }
                return self.pump(now, actions);
            };
            match exchange.reader.next(input) {
                Ok((_, Part::NeedMore)) => return,
                Ok((used, Part::Head(head))) => {
                    exchange.head = Some(head);
                    input = &input[used..];
                }
                Ok((used, Part::Data(data))) if exchange.body.len() + data.len() <= self.max_body => {
                    exchange.body.extend_from_slice(data);
                    input = &input[used..];
                }
                Ok((used, Part::End)) => {
                    input = &input[used..];
                    self.handle_end(number, now, actions);
                }
                Ok((_, Part::Data(_))) | Err(_) => {
                    let ticket = exchange.ticket;
                    self.hang_up(number, actions);
                    self.finish(ticket, None, actions);
                    return self.pump(now, actions);
                }
            }
        }
    }

    /// An answer is complete.
    fn handle_end(&mut self, number: usize, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        let Connection::Busy(exchange) =
            std::mem::replace(&mut self.connections[number], Connection::Idle { used: true })
        else {
            unreachable!("called for a busy connection");
        };
        if !exchange.head.as_ref().is_some_and(|head| head.keep_alive) {
            self.hang_up(number, actions);
        }
        self.complete(*exchange, now, actions);
    }

    fn hang_up(&mut self, number: usize, actions: &mut Vec<PoolAction<P>>) {
        self.connections[number] = Connection::Closed;
        actions.push(PoolAction::HangUp(number));
    }

    fn complete(&mut self, exchange: Exchange, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        self.last_answer = now;
        let answer = exchange.head.map(|head| Answer {
            status: head.status,
            auth_cookie: head.auth_cookie,
            body: exchange.body,
        });
        self.finish(exchange.ticket, answer, actions);
    }

    /// The connection ended before the answer: the request is sent once more. A connection that had carried
    /// answers most likely was closed while idle; that does not count, and the next one may be like it.
    fn try_again(&mut self, exchange: &Exchange, actions: &mut Vec<PoolAction<P>>) {
        if let Some(ticket) = self.tickets.get_mut(exchange.ticket)
            && exchange.reader.is_untouched()
        {
            ticket.attempts += u8::from(!exchange.used);
            if ticket.attempts < MAX_ATTEMPTS {
                return self.waiting.push_front(exchange.ticket);
            }
        }
        self.finish(exchange.ticket, None, actions);
    }

    fn finish(&mut self, ticket: Key, answer: Option<Answer>, actions: &mut Vec<PoolAction<P>>) {
        if let Some(ticket) = self.tickets.remove(ticket) {
            actions.push(PoolAction::Done(ticket.purpose, answer));
        }
    }

    fn deadline(&self, submitted: Millis) -> Millis {
        (submitted.max(self.last_answer) + NO_ANSWER_FOR).min(submitted + LONGEST_WAIT)
    }

    /// When a request that was sent fails. Time that it spent in the queue while CouchDB said nothing counts too.
    fn answer_due(&self, exchange: &Exchange) -> Millis {
        let alone = exchange.sent + NO_ANSWER_FOR;
        self.tickets.get(exchange.ticket).map_or(alone, |ticket| alone.min(self.deadline(ticket.submitted)))
    }

    /// When there is something to dial for, that cannot be dialed yet.
    fn redial_at(&self) -> Millis {
        let closed = self.connections.iter().all(|connection| matches!(connection, Connection::Closed));
        if closed { self.redial_from } else { Millis::MAX }
    }

    /// Sends what waits over connections that are idle, and dials more where there are none.
    fn pump(&mut self, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        for number in 0..self.connections.len() {
            if let Connection::Idle { used } = self.connections[number] {
                let Some((ticket, request)) = self.next_request() else { return };
                let (reader, head, body) = (ResponseReader::new(), None, Vec::new());
                self.connections[number] =
                    Connection::Busy(Box::new(Exchange { ticket, sent: now, used, reader, head, body }));
                actions.push(PoolAction::Send(number, request));
            }
        }
        if now < self.redial_from {
            return;
        }
        let dialing = self.connections.iter().filter(|c| matches!(c, Connection::Dialing)).count();
        let wanted = self.waiting.len().saturating_sub(dialing);
        let closed = self.connections.iter_mut().enumerate().filter(|(_, c)| matches!(c, Connection::Closed));
        for (number, connection) in closed.take(wanted) {
            *connection = Connection::Dialing;
            actions.push(PoolAction::Dial(number));
        }
    }

    /// The next request that nobody cancelled.
    fn next_request(&mut self) -> Option<(Key, Vec<u8>)> {
        while let Some(key) = self.waiting.pop_front() {
            if let Some(ticket) = self.tickets.get(key) {
                return Some((key, ticket.request.clone()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

    fn done(actions: &mut Vec<PoolAction<u32>>) -> Vec<(u32, Option<u16>)> {
        actions
            .drain(..)
            .filter_map(|action| match action {
                PoolAction::Done(purpose, answer) => Some((purpose, answer.map(|a| a.status))),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn queues_in_order_over_few_connections() {
        let (mut pool, mut actions) = (Pool::new(2, MAX_BODY, MAX_WAITING), Vec::new());
        for purpose in 0..4u32 {
            pool.submit(vec![b'a'], purpose, 0, &mut actions).unwrap();
        }
        assert_eq!(actions, [PoolAction::Dial(0), PoolAction::Dial(1)]);
        actions.clear();
        pool.handle_connected(0, 1, &mut actions);
        pool.handle_connected(1, 1, &mut actions);
        assert_eq!(actions, [PoolAction::Send(0, vec![b'a']), PoolAction::Send(1, vec![b'a'])]);
        pool.handle_bytes(1, OK, 2, &mut actions);
        pool.handle_bytes(0, OK, 2, &mut actions);
        assert_eq!(done(&mut actions), [(1, Some(200)), (0, Some(200))]);
        pool.handle_bytes(0, OK, 2, &mut actions);
        pool.handle_bytes(1, OK, 2, &mut actions);
        assert_eq!(done(&mut actions).len(), 2);
        assert!(pool.is_empty());
        assert_eq!(pool.poll_timeout(), None);
    }

    #[test]
    fn a_connection_that_ended_under_a_request_is_tried_once_more() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        pool.submit(vec![b'a'], 7u32, 0, &mut actions).unwrap();
        for attempt in 0..2 {
            pool.handle_connected(0, 1, &mut actions);
            assert!(actions.contains(&PoolAction::Send(0, vec![b'a'])), "{attempt}");
            actions.clear();
            pool.handle_lost(0, 1, &mut actions);
        }
        assert_eq!(done(&mut actions), [(7, None)]);
    }

    #[test]
    fn connections_that_went_stale_while_idle_do_not_count_as_tries() {
        let (mut pool, mut actions) = (Pool::new(3, MAX_BODY, MAX_WAITING), Vec::new());
        for purpose in 0..3u32 {
            pool.submit(vec![b'a'], purpose, 0, &mut actions).unwrap();
        }
        for number in 0..3 {
            pool.handle_connected(number, 0, &mut actions);
        }
        for number in 0..3 {
            pool.handle_bytes(number, OK, 1, &mut actions);
        }
        assert_eq!(done(&mut actions).len(), 3);
        // Something between here and there forgot all three: each shows it when it is written to.
        pool.submit(vec![b'b'], 7, 100, &mut actions).unwrap();
        for number in 0..3 {
            assert!(actions.contains(&PoolAction::Send(number, vec![b'b'])), "{number}: {actions:?}");
            pool.handle_lost(number, 100, &mut actions);
        }
        let dialed = actions.iter().find_map(|action| match action {
            PoolAction::Dial(number) => Some(*number),
            _ => None,
        });
        pool.handle_connected(dialed.expect("none is left, so one is dialed"), 101, &mut actions);
        pool.handle_bytes(dialed.unwrap(), OK, 102, &mut actions);
        assert_eq!(done(&mut actions), [(7, Some(200))]);
    }

    #[test]
    fn fails_within_five_seconds_when_couchdb_is_away_or_silent() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        pool.submit(vec![b'a'], 1u32, 1000, &mut actions).unwrap();
        pool.submit(vec![b'b'], 2u32, 1000, &mut actions).unwrap();
        pool.handle_lost(0, 1001, &mut actions);
        let mut now = 1001;
        while !pool.is_empty() {
            now = pool.poll_timeout().expect("something is due").max(now);
            assert!(now < 6000, "{now}");
            pool.handle_timeout(now, &mut actions);
            if actions.contains(&PoolAction::Dial(0)) {
                actions.retain(|action| matches!(action, PoolAction::Done(..)));
                pool.handle_lost(0, now, &mut actions);
            }
        }
        assert_eq!(done(&mut actions), [(1, None), (2, None)]);
        // Accepted, and never answered.
        pool.submit(vec![b'a'], 3u32, 10_000, &mut actions).unwrap();
        pool.handle_connected(0, 10_000, &mut actions);
        assert_eq!(pool.poll_timeout(), Some(14_500));
        pool.handle_timeout(14_500, &mut actions);
        assert_eq!(done(&mut actions), [(3, None)]);
    }

    #[test]
    fn who_queued_before_a_silent_couchdb_waits_no_longer_than_who_was_sent() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        pool.submit(vec![b'a'], 1u32, 0, &mut actions).unwrap();
        pool.handle_connected(0, 0, &mut actions);
        pool.submit(vec![b'b'], 2u32, 10, &mut actions).unwrap();
        // The first one fails, and the second is sent: a moment before its time is over too.
        assert_eq!(pool.poll_timeout(), Some(4500));
        pool.handle_timeout(4500, &mut actions);
        pool.handle_connected(0, 4501, &mut actions);
        assert!(actions.contains(&PoolAction::Send(0, vec![b'b'])));
        assert_eq!(pool.poll_timeout(), Some(4510));
        pool.handle_timeout(4510, &mut actions);
        assert_eq!(done(&mut actions), [(1, None), (2, None)]);
    }

    #[test]
    fn a_long_queue_is_no_failure_while_answers_come() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        for purpose in 0..20u32 {
            pool.submit(vec![b'a'], purpose, 0, &mut actions).unwrap();
        }
        pool.handle_connected(0, 0, &mut actions);
        for second in 1..=12 {
            pool.handle_timeout(second * 1000, &mut actions);
            pool.handle_bytes(0, OK, second * 1000, &mut actions);
        }
        let over = done(&mut actions);
        assert_eq!(over.len(), 12);
        assert!(over.iter().all(|(_, status)| *status == Some(200)), "{over:?}");
    }

    #[test]
    fn what_is_cancelled_is_neither_sent_nor_told() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        let first = pool.submit(vec![b'a'], 1u32, 0, &mut actions).unwrap();
        let second = pool.submit(vec![b'b'], 2u32, 0, &mut actions).unwrap();
        pool.submit(vec![b'c'], 3u32, 0, &mut actions).unwrap();
        pool.handle_connected(0, 0, &mut actions);
        pool.cancel(first);
        pool.cancel(second);
        actions.clear();
        pool.handle_bytes(0, OK, 1, &mut actions);
        assert_eq!(actions, [PoolAction::Send(0, vec![b'c'])]);
        pool.handle_bytes(0, &OK[..10], 1, &mut actions);
        pool.handle_bytes(0, &OK[10..], 1, &mut actions);
        assert_eq!(done(&mut actions), [(3, Some(200))]);
    }

    #[test]
    fn broken_answers_and_answers_to_nothing_end_the_connection() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        pool.submit(vec![b'a'], 1u32, 0, &mut actions).unwrap();
        pool.handle_connected(0, 0, &mut actions);
        pool.handle_bytes(0, b"SSH-2.0\r\n", 1, &mut actions);
        assert!(actions.contains(&PoolAction::HangUp(0)));
        assert_eq!(done(&mut actions), [(1, None)]);
        pool.submit(vec![b'a'], 2u32, 5, &mut actions).unwrap();
        pool.handle_connected(0, 5, &mut actions);
        pool.handle_bytes(0, &[OK, OK].concat(), 6, &mut actions);
        assert!(actions.contains(&PoolAction::HangUp(0)));
        assert_eq!(done(&mut actions), [(2, Some(200))]);
    }
}
