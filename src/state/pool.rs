//! A few keep-alive connections to CouchDB and the queue before them: one request a connection at a time,
//! so that a storm of clients becomes a line, and CouchDB has as much to do as it can.
//!
//! The queue serves the owners of requests in turn ([`Owner`]): a client that queues much delays only itself.
//!
//! Every request has a deadline. It moves along while CouchDB answers others (a long queue is no
//! failure), and does not while CouchDB is silent or away.
//!
//! A connection can die without a word while it is idle: what stands in between forgets it, or CouchDB's machine is
//! gone. So connections are closed when they were idle for [`IDLE_FOR`], and a request that gets no answer on a
//! connection that was idle before is sent again on a new one after [`SUSPECT_AFTER`].

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use crate::state::fair_queue::FairQueue;
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
pub const LONGEST_WAIT: Millis = 30_000;
/// Time from a failed connection to the next try, in milliseconds.
const REDIAL_AFTER: Millis = 250;
/// A connection that was idle for so long is closed, in milliseconds: many firewalls forget it after a minute or more.
pub const IDLE_FOR: Millis = 30_000;
/// A connection that was idle is taken for dead when it gives no answer for so long, in milliseconds.
pub const SUSPECT_AFTER: Millis = 1_000;
/// For so long it is remembered how long answers take, in milliseconds: a slow CouchDB is not a dead connection.
const SLOW_FOR: Millis = 60_000;
/// Longest body of an answer about a session, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// How often a request is sent over new connections that end without an answer to it.
pub const MAX_ATTEMPTS: u8 = 2;
/// The queue keeps fewer cancelled requests than this, or fewer than requests that wait.
const MAX_CANCELLED: usize = 1_024;

/// The client that a request is for. The pool serves owners in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The server itself. A queue that has only this owner is served in the order of submission.
    Server,
    /// A network, see [`network`]: for clients that have not logged in.
    Network(IpAddr),
    /// The checks whether sessions are still logged in. Together they are one owner: there is one of each session, and
    /// other requests are not to wait for all of them.
    SessionChecks,
}

impl Owner {
    /// Returns the owner of a request of a client at an address.
    pub fn at(address: IpAddr) -> Self {
        Self::Network(network(address))
    }
}

/// Returns what one customer of a provider has: an address of version 4, 64 bits of one of version 6.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        four @ IpAddr::V4(_) => four,
    }
}

/// A request to be queued.
#[derive(Debug)]
pub struct Submission<P> {
    /// The client that it is for.
    pub owner: Owner,
    /// The request as it is written.
    pub request: Vec<u8>,
    /// What it is for.
    pub purpose: P,
    /// When the client began to wait for it. Deadlines count from here.
    pub since: Millis,
    /// Whether it may be sent again when a connection ends without an answer to it. CouchDB may have carried it out.
    pub repeatable: bool,
}

/// Why a request is not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Too many requests wait, in total or of this owner.
    Full,
    /// Its deadline is over.
    Late,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The request was never sent.
    NotSent,
    /// The request was sent. CouchDB may have carried it out, or may yet.
    Sent,
    /// The connection ended before the answer, and the request is not repeatable.
    Lost {
        /// Whether the connection had carried answers before. Such a connection most likely was closed while idle.
        used: bool,
    },
}

/// What the pool wants done. `usize` is the number of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum PoolAction<P> {
    /// Connect to CouchDB.
    Dial(usize),
    /// Write this to the connection.
    Send(usize, Vec<u8>),
    /// Give the connection up.
    HangUp(usize),
    /// A request is over.
    Done(P, Result<Answer, NoAnswer>),
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The `AuthSession` cookie that was set.
    pub auth_cookie: Option<Secret>,
    /// The `Date`, in seconds since 1970.
    pub date: Option<u64>,
    /// The body; empty when it is too long.
    pub body: Vec<u8>,
    /// Whether the body is longer than the pool takes.
    pub is_too_long: bool,
}

/// The pool; `P` says what a request is for.
#[derive(Debug)]
pub struct Pool<P> {
    connections: Vec<Connection>,
    /// Longest body of an answer, in bytes.
    max_body: usize,
    max_waiting: usize,
    tickets: Table<Ticket<P>>,
    /// Tickets that wait; those that were cancelled are in here still.
    waiting: FairQueue<Owner, Key>,
    /// The tickets in `waiting` that were not cancelled, the oldest first.
    oldest: BTreeSet<(Millis, Key)>,
    /// How many of them an owner has.
    counts: HashMap<Owner, usize>,
    last_answer: Millis,
    /// After a failed connection, not before this.
    redial_from: Millis,
    /// How long the slowest answer of late took, and when it came.
    slowest: (Millis, Millis),
}

#[derive(Debug)]
struct Ticket<P> {
    purpose: P,
    owner: Owner,
    request: Vec<u8>,
    since: Millis,
    repeatable: bool,
    /// Whether it was sent at least once.
    sent: bool,
    /// New connections that ended under it.
    attempts: u8,
}

#[derive(Debug)]
enum Connection {
    Closed,
    Dialing,
    /// It carries no request.
    Idle {
        /// Whether it has carried an answer.
        used: bool,
        /// Since when.
        since: Millis,
        /// Whether no request was there for it when its last one was answered. Else it has just proved itself.
        rested: bool,
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
    /// When the connection is taken for dead unless the answer begins; None for one that is known to live.
    suspect_at: Option<Millis>,
    /// Whether the connection is closed behind the answer.
    is_last: bool,
    reader: ResponseReader,
    head: Option<Response>,
    body: Vec<u8>,
}

impl Exchange {
    /// When the connection is taken for dead.
    fn suspicion(&self) -> Millis {
        self.suspect_at.filter(|_| self.reader.is_untouched() && self.head.is_none()).unwrap_or(Millis::MAX)
    }
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
            waiting: FairQueue::default(),
            oldest: BTreeSet::new(),
            counts: HashMap::new(),
            last_answer: 0,
            redial_from: 0,
            slowest: (0, 0),
        }
    }

    /// Queues a request. The key is good for [`Pool::cancel`].
    ///
    /// # Errors
    /// [`Rejection`]. One owner has at most as many waiting requests as there is room for others.
    pub fn submit(
        &mut self,
        submission: Submission<P>,
        now: Millis,
        actions: &mut Vec<PoolAction<P>>,
    ) -> Result<Key, Rejection> {
        let Submission { owner, request, purpose, since, repeatable } = submission;
        if self.deadline(since) <= now {
            return Err(Rejection::Late);
        }
        let room = self.max_waiting.saturating_sub(self.oldest.len());
        if room == 0 || self.counts.get(&owner).is_some_and(|own| *own > room) {
            return Err(Rejection::Full);
        }
        if self.waiting.len() - self.oldest.len() > self.oldest.len().max(MAX_CANCELLED) {
            let Self { waiting, tickets, .. } = self;
            waiting.retain(|_, ticket| tickets.get(*ticket).is_some());
        }
        let ticket = Ticket { purpose, owner, request, since, repeatable, sent: false, attempts: 0 };
        let key = self.tickets.insert(ticket);
        self.waiting.push(owner, key);
        self.count_waiting(owner, since, key);
        self.pump(now, actions);
        Ok(key)
    }

    /// Forgets a request: it is not sent if it was not, and its answer is passed over.
    pub fn cancel(&mut self, key: Key) {
        if let Some(ticket) = self.tickets.remove(key) {
            self.uncount_waiting(ticket.owner, ticket.since, key);
        }
    }

    /// Ends all requests that wait for a connection.
    pub fn reject_waiting(&mut self, actions: &mut Vec<PoolAction<P>>) {
        while let Some((_, key)) = self.waiting.pop() {
            self.finish(key, None, actions);
        }
    }

    /// Changes the requests that have not been answered: they are sent so from now on.
    pub fn for_each_waiting(&mut self, mut change: impl FnMut(&mut Vec<u8>)) {
        let keys: Vec<Key> = self.tickets.keys().collect();
        for key in keys {
            if let Some(ticket) = self.tickets.get_mut(key) {
                change(&mut ticket.request);
            }
        }
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
        !self.oldest.is_empty()
    }

    /// When [`Pool::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let waiting = self.oldest.first().map(|(since, _)| self.deadline(*since).min(self.redial_at()));
        let connections = self.connections.iter().filter_map(|connection| match connection {
            Connection::Busy(exchange) => Some(self.answer_due(exchange).min(exchange.suspicion())),
            Connection::Idle { since, .. } => Some(since + IDLE_FOR),
            Connection::Closed | Connection::Dialing => None,
        });
        connections.chain(waiting).min()
    }

    /// Ends what took too long, and tries again what could not be connected.
    pub fn handle_timeout(&mut self, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        for number in 0..self.connections.len() {
            match &self.connections[number] {
                Connection::Busy(exchange) if self.answer_due(exchange) <= now => {
                    let ticket = exchange.ticket;
                    self.hang_up(number, actions);
                    self.finish(ticket, None, actions);
                }
                Connection::Busy(exchange) if exchange.suspicion() <= now => self.give_up(number, actions),
                Connection::Idle { since, .. } if since + IDLE_FOR <= now => self.hang_up(number, actions),
                _ => {}
            }
        }
        // A deadline never comes before that of an older request.
        while let Some(&(since, ticket)) = self.oldest.first()
            && self.deadline(since) <= now
        {
            self.finish(ticket, None, actions);
        }
        self.pump(now, actions);
    }

    /// A connection stands.
    pub fn handle_connected(&mut self, number: usize, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        self.connections[number] = Connection::Idle { used: false, since: now, rested: false };
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
                Ok((_, Part::Data(_))) => {
                    let (ticket, head) = (exchange.ticket, exchange.head.take());
                    let too_long = |head: Response| {
                        let (body, is_too_long) = (Vec::new(), true);
                        Ok(Answer { status: head.status, auth_cookie: None, date: head.date, body, is_too_long })
                    };
                    self.last_answer = now;
                    self.hang_up(number, actions);
                    self.finish(ticket, head.map(too_long), actions);
                    return self.pump(now, actions);
                }
                Err(_) => {
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
        let Connection::Busy(exchange) = std::mem::replace(
            &mut self.connections[number],
            Connection::Idle { used: true, since: now, rested: false },
        ) else {
            unreachable!("called for a busy connection");
        };
        if exchange.is_last || !exchange.head.as_ref().is_some_and(|head| head.keep_alive) {
            self.hang_up(number, actions);
        }
        self.complete(*exchange, now, actions);
    }

    fn hang_up(&mut self, number: usize, actions: &mut Vec<PoolAction<P>>) {
        self.connections[number] = Connection::Closed;
        actions.push(PoolAction::HangUp(number));
    }

    /// Gives up a connection that seems to be dead, and all others that have been idle as it had: whatever stands in
    /// between has forgotten these, too.
    fn give_up(&mut self, number: usize, actions: &mut Vec<PoolAction<P>>) {
        self.hang_up_idle(actions);
        let given_up = std::mem::replace(&mut self.connections[number], Connection::Closed);
        actions.push(PoolAction::HangUp(number));
        if let Connection::Busy(mut exchange) = given_up {
            // The request may have arrived all the same.
            exchange.used = false;
            self.try_again(&exchange, actions);
        }
    }

    fn hang_up_idle(&mut self, actions: &mut Vec<PoolAction<P>>) {
        for number in 0..self.connections.len() {
            if matches!(self.connections[number], Connection::Idle { .. }) {
                self.hang_up(number, actions);
            }
        }
    }

    /// Makes no further request go over the connections that there are: CouchDB is somewhere else.
    pub fn retire_connections(&mut self, actions: &mut Vec<PoolAction<P>>) {
        self.hang_up_idle(actions);
        for connection in &mut self.connections {
            if let Connection::Busy(exchange) = connection {
                exchange.is_last = true;
            }
        }
    }

    fn complete(&mut self, exchange: Exchange, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        self.last_answer = now;
        let took = now.saturating_sub(exchange.sent);
        if took >= self.slowest.0 || now >= self.slowest.1 + SLOW_FOR {
            self.slowest = (took, now);
        }
        let answer = exchange.head.map(|head| {
            let Response { status, auth_cookie, date, .. } = head;
            Ok(Answer { status, auth_cookie, date, body: exchange.body, is_too_long: false })
        });
        self.finish(exchange.ticket, answer, actions);
    }

    /// The connection ended before the answer: the request is sent once more. A connection that had carried
    /// answers most likely was closed while idle; that does not count, and the next one may be like it.
    fn try_again(&mut self, exchange: &Exchange, actions: &mut Vec<PoolAction<P>>) {
        let Some(ticket) = self.tickets.get_mut(exchange.ticket) else { return };
        if !exchange.reader.is_untouched() {
            return self.finish(exchange.ticket, Some(Err(NoAnswer::Sent)), actions);
        }
        if !ticket.repeatable {
            let lost = NoAnswer::Lost { used: exchange.used };
            return self.finish(exchange.ticket, Some(Err(lost)), actions);
        }
        ticket.attempts += u8::from(!exchange.used);
        if ticket.attempts >= MAX_ATTEMPTS {
            return self.finish(exchange.ticket, None, actions);
        }
        let (owner, since) = (ticket.owner, ticket.since);
        self.waiting.push_front(owner, exchange.ticket);
        self.count_waiting(owner, since, exchange.ticket);
    }

    /// Ends a request; without an outcome there is no answer.
    fn finish(&mut self, key: Key, outcome: Option<Result<Answer, NoAnswer>>, actions: &mut Vec<PoolAction<P>>) {
        let Some(ticket) = self.tickets.remove(key) else { return };
        self.uncount_waiting(ticket.owner, ticket.since, key);
        let none = Err(if ticket.sent { NoAnswer::Sent } else { NoAnswer::NotSent });
        actions.push(PoolAction::Done(ticket.purpose, outcome.unwrap_or(none)));
    }

    fn count_waiting(&mut self, owner: Owner, since: Millis, key: Key) {
        self.oldest.insert((since, key));
        *self.counts.entry(owner).or_default() += 1;
    }

    /// Takes a request out of those that wait, if it is one of them.
    fn uncount_waiting(&mut self, owner: Owner, since: Millis, key: Key) {
        if self.oldest.remove(&(since, key))
            && let Some(count) = self.counts.get_mut(&owner)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&owner);
            }
        }
    }

    fn deadline(&self, since: Millis) -> Millis {
        (since.max(self.last_answer) + NO_ANSWER_FOR).min(since + LONGEST_WAIT)
    }

    /// When a request that was sent fails. Time that it spent in the queue while CouchDB said nothing counts too.
    fn answer_due(&self, exchange: &Exchange) -> Millis {
        let alone = exchange.sent + NO_ANSWER_FOR;
        self.tickets.get(exchange.ticket).map_or(alone, |ticket| alone.min(self.deadline(ticket.since)))
    }

    /// When there is something to dial for, that cannot be dialed yet.
    fn redial_at(&self) -> Millis {
        let closed = self.connections.iter().all(|connection| matches!(connection, Connection::Closed));
        if closed { self.redial_from } else { Millis::MAX }
    }

    /// Sends what waits over connections that are idle, and dials more where there are none.
    fn pump(&mut self, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        // No answer of a slow CouchDB is due sooner than it gave others.
        let slowest = if now < self.slowest.1 + SLOW_FOR { self.slowest.0 } else { 0 };
        let patience = SUSPECT_AFTER.max(2 * slowest);
        for number in 0..self.connections.len() {
            if let Connection::Idle { used, rested, .. } = self.connections[number] {
                let Some((ticket, request)) = self.next_request() else { break };
                // One that was idle is as good as closed, whether it has carried an answer or not.
                let (used, suspect_at) = (used || rested, rested.then_some(now + patience));
                self.connections[number] = Connection::Busy(Box::new(Exchange {
                    ticket,
                    sent: now,
                    used,
                    suspect_at,
                    is_last: false,
                    reader: ResponseReader::new(),
                    head: None,
                    body: Vec::new(),
                }));
                actions.push(PoolAction::Send(number, request));
            }
        }
        for connection in &mut self.connections {
            if let Connection::Idle { rested, .. } = connection {
                *rested = true;
            }
        }
        if now < self.redial_from {
            return;
        }
        let dialing = self.connections.iter().filter(|c| matches!(c, Connection::Dialing)).count();
        let wanted = self.oldest.len().saturating_sub(dialing);
        let closed = self.connections.iter_mut().enumerate().filter(|(_, c)| matches!(c, Connection::Closed));
        for (number, connection) in closed.take(wanted) {
            *connection = Connection::Dialing;
            actions.push(PoolAction::Dial(number));
        }
    }

    /// The next request that nobody cancelled.
    fn next_request(&mut self) -> Option<(Key, Vec<u8>)> {
        while let Some((owner, key)) = self.waiting.pop() {
            let Some(ticket) = self.tickets.get_mut(key) else { continue };
            ticket.sent = true;
            // One that is not sent again is not kept.
            let request = if ticket.repeatable { ticket.request.clone() } else { std::mem::take(&mut ticket.request) };
            let since = ticket.since;
            self.uncount_waiting(owner, since, key);
            return Some((key, request));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

    fn submit(pool: &mut Pool<u32>, byte: u8, purpose: u32, now: Millis, actions: &mut Vec<PoolAction<u32>>) -> Key {
        let submission =
            Submission { owner: Owner::Server, request: vec![byte], purpose, since: now, repeatable: true };
        pool.submit(submission, now, actions).unwrap()
    }

    fn done(actions: &mut Vec<PoolAction<u32>>) -> Vec<(u32, Option<u16>)> {
        actions
            .drain(..)
            .filter_map(|action| match action {
                PoolAction::Done(purpose, answer) => Some((purpose, answer.ok().map(|a| a.status))),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn queues_in_order_over_few_connections() {
        let (mut pool, mut actions) = (Pool::new(2, MAX_BODY, MAX_WAITING), Vec::new());
        for purpose in 0..4u32 {
            submit(&mut pool, b'a', purpose, 0, &mut actions);
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
        assert_eq!(pool.poll_timeout(), Some(2 + IDLE_FOR), "there is nothing to do but to close what is idle");
    }

    #[test]
    fn a_connection_that_ended_under_a_request_is_tried_once_more() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        submit(&mut pool, b'a', 7, 0, &mut actions);
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
            submit(&mut pool, b'a', purpose, 0, &mut actions);
        }
        for number in 0..3 {
            pool.handle_connected(number, 0, &mut actions);
        }
        for number in 0..3 {
            pool.handle_bytes(number, OK, 1, &mut actions);
        }
        assert_eq!(done(&mut actions).len(), 3);
        // Something between here and there forgot all three: each shows it when it is written to.
        submit(&mut pool, b'b', 7, 100, &mut actions);
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

    /// A pool all of whose connections have carried an answer and are idle from 1 on.
    fn idle_pool(size: usize) -> (Pool<u32>, Vec<PoolAction<u32>>) {
        let (mut pool, mut actions) = (Pool::new(size, MAX_BODY, MAX_WAITING), Vec::new());
        for purpose in 0..u32::try_from(size).unwrap() {
            submit(&mut pool, b'a', purpose, 0, &mut actions);
        }
        (0..size).for_each(|number| pool.handle_connected(number, 0, &mut actions));
        (0..size).for_each(|number| pool.handle_bytes(number, OK, 1, &mut actions));
        actions.clear();
        (pool, actions)
    }

    #[test]
    fn connections_that_died_silently_delay_a_request_by_a_second_once() {
        let (mut pool, mut actions) = idle_pool(8);
        submit(&mut pool, b'b', 7, 100, &mut actions);
        assert_eq!(actions, [PoolAction::Send(0, vec![b'b'])]);
        actions.clear();
        assert_eq!(pool.poll_timeout(), Some(100 + SUSPECT_AFTER));
        pool.handle_timeout(100 + SUSPECT_AFTER, &mut actions);
        let hung_up = actions.iter().filter(|action| matches!(action, PoolAction::HangUp(_))).count();
        assert_eq!((hung_up, actions.last()), (8, Some(&PoolAction::Dial(0))), "none of them is trusted: {actions:?}");
        actions.clear();
        pool.handle_connected(0, 1_101, &mut actions);
        assert_eq!(actions, [PoolAction::Send(0, vec![b'b'])]);
        assert_eq!(pool.poll_timeout(), Some(4_600), "on a new connection CouchDB has the whole time");
        pool.handle_bytes(0, OK, 1_110, &mut actions);
        assert_eq!(done(&mut actions), [(7, Some(200))]);
    }

    #[test]
    fn eight_requests_on_eight_dead_connections_wait_together() {
        let (mut pool, mut actions) = idle_pool(8);
        for purpose in 0..8 {
            submit(&mut pool, b'b', purpose, 100, &mut actions);
        }
        actions.clear();
        pool.handle_timeout(1_100, &mut actions);
        assert_eq!(actions.iter().filter(|action| matches!(action, PoolAction::Dial(_))).count(), 8);
        (0..8).for_each(|number| pool.handle_connected(number, 1_101, &mut actions));
        (0..8).for_each(|number| pool.handle_bytes(number, OK, 1_102, &mut actions));
        assert_eq!(done(&mut actions).len(), 8);
    }

    #[test]
    fn connections_that_nobody_needed_in_the_end_die_silently_too() {
        let (mut pool, mut actions) = (Pool::new(2, MAX_BODY, MAX_WAITING), Vec::new());
        submit(&mut pool, b'a', 1, 0, &mut actions);
        submit(&mut pool, b'a', 2, 0, &mut actions);
        pool.handle_connected(0, 0, &mut actions);
        pool.handle_bytes(0, OK, 1, &mut actions);
        pool.handle_bytes(0, OK, 2, &mut actions);
        // Dialed for a request that went over the other one.
        pool.handle_connected(1, 3, &mut actions);
        actions.clear();
        submit(&mut pool, b'b', 3, 100, &mut actions);
        submit(&mut pool, b'b', 4, 100, &mut actions);
        assert_eq!(actions, [PoolAction::Send(0, vec![b'b']), PoolAction::Send(1, vec![b'b'])]);
        actions.clear();
        pool.handle_timeout(100 + SUSPECT_AFTER, &mut actions);
        assert!(actions.contains(&PoolAction::HangUp(0)) && actions.contains(&PoolAction::HangUp(1)), "{actions:?}");
    }

    #[test]
    fn a_slow_couchdb_is_not_a_dead_connection() {
        let (mut pool, mut actions) = idle_pool(1);
        // The answer takes 1.5 s on a new connection, too: then that is what answers take.
        submit(&mut pool, b'b', 1, 100, &mut actions);
        pool.handle_timeout(1_100, &mut actions);
        pool.handle_connected(0, 1_100, &mut actions);
        pool.handle_bytes(0, OK, 2_600, &mut actions);
        assert_eq!(done(&mut actions), [(1, Some(200))]);
        submit(&mut pool, b'c', 2, 3_000, &mut actions);
        assert_eq!(pool.poll_timeout(), Some(6_000));
        // The first byte shows that it lives.
        pool.handle_bytes(0, &OK[..1], 5_000, &mut actions);
        assert_eq!(pool.poll_timeout(), Some(7_500));
        pool.handle_bytes(0, &OK[1..], 5_100, &mut actions);
        assert_eq!(done(&mut actions), [(2, Some(200))]);
        // Where requests follow each other without a pause, the connection has just proved itself.
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        for purpose in 0..2u32 {
            submit(&mut pool, b'a', purpose, 0, &mut actions);
        }
        pool.handle_connected(0, 0, &mut actions);
        pool.handle_bytes(0, OK, 10, &mut actions);
        assert_eq!(pool.poll_timeout(), Some(4_510));
    }

    #[test]
    fn connections_are_not_kept_idle_for_long() {
        let (mut pool, mut actions) = idle_pool(2);
        assert_eq!(pool.poll_timeout(), Some(1 + IDLE_FOR));
        submit(&mut pool, b'b', 7, 100, &mut actions);
        pool.handle_bytes(0, OK, 101, &mut actions);
        actions.clear();
        pool.handle_timeout(1 + IDLE_FOR, &mut actions);
        assert_eq!(actions, [PoolAction::HangUp(1)]);
        actions.clear();
        pool.handle_timeout(101 + IDLE_FOR, &mut actions);
        assert_eq!((&actions[..], pool.poll_timeout()), (&[PoolAction::HangUp(0)][..], None));
    }

    #[test]
    fn retired_connections_carry_no_further_request() {
        let (mut pool, mut actions) = idle_pool(2);
        submit(&mut pool, b'b', 7, 100, &mut actions);
        actions.clear();
        pool.retire_connections(&mut actions);
        assert_eq!(actions, [PoolAction::HangUp(1)]);
        actions.clear();
        submit(&mut pool, b'c', 8, 101, &mut actions);
        pool.handle_bytes(0, OK, 102, &mut actions);
        assert!(actions.contains(&PoolAction::HangUp(0)) && !actions.contains(&PoolAction::Send(0, vec![b'c'])));
    }

    #[test]
    fn fails_within_five_seconds_when_couchdb_is_away_or_silent() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        submit(&mut pool, b'a', 1, 1000, &mut actions);
        submit(&mut pool, b'b', 2, 1000, &mut actions);
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
        submit(&mut pool, b'a', 3, 10_000, &mut actions);
        pool.handle_connected(0, 10_000, &mut actions);
        assert_eq!(pool.poll_timeout(), Some(14_500));
        pool.handle_timeout(14_500, &mut actions);
        assert_eq!(done(&mut actions), [(3, None)]);
    }

    #[test]
    fn who_queued_before_a_silent_couchdb_waits_no_longer_than_who_was_sent() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        submit(&mut pool, b'a', 1, 0, &mut actions);
        pool.handle_connected(0, 0, &mut actions);
        submit(&mut pool, b'b', 2, 10, &mut actions);
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
            submit(&mut pool, b'a', purpose, 0, &mut actions);
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
        let first = submit(&mut pool, b'a', 1, 0, &mut actions);
        let second = submit(&mut pool, b'b', 2, 0, &mut actions);
        submit(&mut pool, b'c', 3, 0, &mut actions);
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
    fn an_answer_that_is_too_long_ends_the_connection_and_says_so() {
        let (mut pool, mut actions) = (Pool::new(1, 4, MAX_WAITING), Vec::new());
        for (purpose, length, too_long) in [(1_u32, 4, false), (2, 5, true)] {
            submit(&mut pool, b'a', purpose, 0, &mut actions);
            if purpose == 1 {
                pool.handle_connected(0, 0, &mut actions);
            }
            actions.clear();
            let answer = format!("HTTP/1.1 404 No\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length));
            pool.handle_bytes(0, answer.as_bytes(), 1, &mut actions);
            assert_eq!(actions.contains(&PoolAction::HangUp(0)), too_long);
            let body = if too_long { Vec::new() } else { vec![b'x'; length] };
            let answer = Answer { status: 404, auth_cookie: None, date: None, body, is_too_long: too_long };
            assert!(actions.contains(&PoolAction::Done(purpose, Ok(answer))), "{actions:?}");
        }
    }

    #[test]
    fn broken_answers_and_answers_to_nothing_end_the_connection() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        submit(&mut pool, b'a', 1, 0, &mut actions);
        pool.handle_connected(0, 0, &mut actions);
        pool.handle_bytes(0, b"SSH-2.0\r\n", 1, &mut actions);
        assert!(actions.contains(&PoolAction::HangUp(0)));
        assert_eq!(done(&mut actions), [(1, None)]);
        submit(&mut pool, b'a', 2, 5, &mut actions);
        pool.handle_connected(0, 5, &mut actions);
        pool.handle_bytes(0, &[OK, OK].concat(), 6, &mut actions);
        assert!(actions.contains(&PoolAction::HangUp(0)));
        assert_eq!(done(&mut actions), [(2, Some(200))]);
    }

    fn queued(owner: Owner, purpose: u32, since: Millis, repeatable: bool) -> Submission<u32> {
        Submission { owner, request: vec![b'a'], purpose, since, repeatable }
    }

    fn at(address: &str) -> Owner {
        Owner::at(address.parse().unwrap())
    }

    #[test]
    fn owners_are_served_in_turn() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        for purpose in 0..4_000 {
            pool.submit(queued(at("2001:db8::1"), purpose, 0, true), 0, &mut actions).unwrap();
        }
        pool.submit(queued(at("2001:db8:0:1::"), 9_000, 1, true), 1, &mut actions).unwrap();
        pool.submit(queued(at("2001:db8::2"), 9_001, 1, true), 1, &mut actions).unwrap();
        pool.handle_connected(0, 1, &mut actions);
        for now in 2..5 {
            pool.handle_bytes(0, OK, now, &mut actions);
        }
        let served: Vec<_> = done(&mut actions).into_iter().map(|(purpose, _)| purpose).collect();
        assert_eq!(served, [0, 9_000, 1]);
    }

    #[test]
    fn an_owner_leaves_room_for_others_and_cancelled_requests_take_none() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, 100), Vec::new());
        let mut submit =
            |pool: &mut Pool<u32>, address: &str| pool.submit(queued(at(address), 0, 0, true), 0, &mut actions);
        let keys: Vec<_> = std::iter::from_fn(|| submit(&mut pool, "10.0.0.1").ok()).collect();
        assert_eq!(keys.len(), 51);
        let others = (0..60).filter(|n| submit(&mut pool, &format!("10.0.1.{n}")).is_ok()).count();
        assert_eq!(others, 49);
        for key in &keys {
            pool.cancel(*key);
        }
        assert_eq!((pool.oldest.len(), pool.counts.len()), (49, 49));
        for _ in 0..10_000 {
            let key = submit(&mut pool, "10.0.0.1").expect("there is room");
            pool.cancel(key);
        }
        assert!(pool.waiting.len() < 3 * MAX_CANCELLED, "{}", pool.waiting.len());
        pool.reject_waiting(&mut actions);
        assert_eq!(done(&mut actions).len(), 49);
        assert!(pool.is_empty() && pool.counts.is_empty() && pool.waiting.is_empty());
    }

    #[test]
    fn deadlines_hold_whatever_the_turn_and_count_from_the_begin_of_the_wait() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        pool.submit(queued(at("10.0.0.1"), 1, 1_000, true), 1_000, &mut actions).unwrap();
        pool.submit(queued(at("10.0.0.1"), 2, 3_000, true), 3_000, &mut actions).unwrap();
        pool.submit(queued(at("10.0.0.2"), 3, 500, true), 3_000, &mut actions).unwrap();
        pool.handle_lost(0, 3_000, &mut actions);
        pool.handle_timeout(5_500, &mut actions);
        assert_eq!(done(&mut actions), [(3, None), (1, None)]);
        let late = pool.submit(queued(at("10.0.0.2"), 4, 900, true), 5_500, &mut actions);
        assert_eq!(late, Err(Rejection::Late));
        pool.handle_timeout(7_500, &mut actions);
        assert_eq!(done(&mut actions), [(2, None)]);
        assert!(pool.is_empty() && pool.oldest.is_empty() && pool.counts.is_empty());
    }

    #[test]
    fn what_is_not_repeatable_is_sent_once() {
        let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
        for (purpose, used) in [(1, false), (2, true)] {
            pool.submit(queued(Owner::Server, purpose, 0, false), 0, &mut actions).unwrap();
            pool.handle_connected(0, 0, &mut actions);
            if used {
                pool.handle_bytes(0, OK, 0, &mut actions);
                pool.submit(queued(Owner::Server, purpose, 0, false), 0, &mut actions).unwrap();
            }
            actions.clear();
            pool.handle_lost(0, 1, &mut actions);
            assert_eq!(actions, [PoolAction::Done(purpose, Err(NoAnswer::Lost { used }))]);
        }
    }
}
