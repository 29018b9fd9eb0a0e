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

mod connection;
mod request;

use std::collections::{BTreeSet, HashMap};

use connection::{Connection, Exchange};
pub use request::{Answer, NoAnswer, Owner, PoolAction, Rejection, Submission};

use crate::state::fair_queue::FairQueue;
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::http::Response;
use crate::wire::response::{Part, ResponseReader};

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
mod tests;
