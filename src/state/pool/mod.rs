//! Keep-alive connections to CouchDB, and the queue in front of them.
//!
//! A connection carries one request at a time, so a storm of clients becomes a queue, and CouchDB
//! gets as much work as it can do. The queue serves the owners of requests in turn ([`Owner`]): a
//! client with many requests delays only itself.
//!
//! Every request has a deadline. The deadline moves while CouchDB answers other requests, since a
//! long queue is no failure. It does not move while CouchDB is silent or away.
//!
//! An idle connection can die unnoticed, when a firewall forgets it or CouchDB's machine is gone.
//! So the pool closes connections that were idle for [`IDLE_TIMEOUT`]. A request without a reply on
//! a formerly idle connection is sent again on a new one after [`SUSPECT_AFTER`].

mod connection;
mod request;

use std::collections::{BTreeSet, HashMap};

use connection::{Connection, Exchange};
pub use request::{Answer, NoAnswer, Owner, PoolAction, Rejection, Submission};

use crate::state::fair_queue::FairQueue;
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::http::Response;
use crate::wire::http::{Part, ResponseReader};

/// Most waiting requests; the pool rejects further ones.
pub const MAX_WAITING: usize = 20_000;
/// Time without any reply of CouchDB after which a request fails, in milliseconds.
const REPLY_TIMEOUT: Millis = 4_500;
/// Longest time in the queue, in milliseconds.
pub const LONGEST_WAIT: Millis = 30_000;
/// Time from a failed dial to the next one, in milliseconds.
const REDIAL_AFTER: Millis = 250;
/// Idle time after which a connection is closed, in milliseconds. Many firewalls forget connections
/// after a minute or more.
pub const IDLE_TIMEOUT: Millis = 30_000;
/// Time without a reply after which a formerly idle connection counts as dead, in milliseconds.
pub const SUSPECT_AFTER: Millis = 1_000;
/// Time for which the slowest reply is remembered, in milliseconds: a slow CouchDB is not a dead
/// connection.
const SLOWEST_KEPT_FOR: Millis = 60_000;
/// Longest body of a reply to a session request, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// Most new connections on which a request is sent while each of them ends without a reply.
pub const MAX_ATTEMPTS: u8 = 2;
/// Most cancelled requests in the queue, unless more requests wait.
const MAX_CANCELLED: usize = 1_024;

/// Connections and waiting requests. `P` is the purpose of a request.
#[derive(Debug)]
pub struct Pool<P> {
    connections: Vec<Connection>,
    /// Longest body of a reply, in bytes.
    max_body: usize,
    max_waiting: usize,
    tickets: Table<Ticket<P>>,
    /// Waiting tickets, cancelled ones included.
    waiting: FairQueue<Owner, Key>,
    /// Waiting tickets without the cancelled ones, the oldest first.
    oldest: BTreeSet<(Millis, Key)>,
    /// Number of these per owner.
    counts: HashMap<Owner, usize>,
    last_answer: Millis,
    /// Earliest time of the next dial after a failed one.
    next_dial: Millis,
    /// Duration of the slowest recent reply, and the time at which it came.
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
    /// New connections that ended without a reply to it.
    attempts: u8,
}

impl<P> Pool<P> {
    /// Creates a pool of at most `size` connections, `max_body` bytes per reply, and `max_waiting`
    /// waiting requests.
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
            next_dial: 0,
            slowest: (0, 0),
        }
    }

    /// Queues a request. The key is for [`Pool::cancel`].
    ///
    /// # Errors
    /// [`Rejection`]. An owner may have at most as many waiting requests as there is room left for
    /// others.
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
        self.send_waiting(now, actions);
        Ok(key)
    }

    /// Cancels a request: it is not sent if it was not, and its reply is ignored.
    pub fn cancel(&mut self, key: Key) {
        if let Some(ticket) = self.tickets.remove(key) {
            self.uncount_waiting(ticket.owner, ticket.since, key);
        }
    }

    /// Fails all requests that wait for a connection.
    pub fn reject_waiting(&mut self, actions: &mut Vec<PoolAction<P>>) {
        while let Some((_, key)) = self.waiting.pop() {
            self.finish(key, None, actions);
        }
    }

    /// Changes the bytes of all requests without a reply, for when they are sent next.
    pub fn for_each_waiting(&mut self, mut change: impl FnMut(&mut Vec<u8>)) {
        let keys: Vec<Key> = self.tickets.keys().collect();
        for key in keys {
            if let Some(ticket) = self.tickets.get_mut(key) {
                change(&mut ticket.request);
            }
        }
    }

    /// Returns the purpose of a request.
    pub fn purpose(&mut self, ticket: Key) -> Option<&mut P> {
        self.tickets.get_mut(ticket).map(|ticket| &mut ticket.purpose)
    }

    /// Returns whether a request was sent and has no reply yet.
    pub fn is_sent(&self, ticket: Key) -> bool {
        self.connections.iter().any(|one| matches!(one, Connection::Busy(exchange) if exchange.ticket == ticket))
    }

    /// Returns the number of requests that wait or are in flight.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// Returns whether no request waits or is in flight.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Returns whether requests wait for a connection.
    pub fn is_waiting(&self) -> bool {
        !self.oldest.is_empty()
    }

    /// Returns when [`Pool::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let waiting = self.oldest.first().map(|(since, _)| self.deadline(*since).min(self.redial_at()));
        let connections = self.connections.iter().filter_map(|connection| match connection {
            Connection::Busy(exchange) => Some(self.answer_due(exchange).min(exchange.suspect_time())),
            Connection::Idle { since, .. } => Some(since + IDLE_TIMEOUT),
            Connection::Closed | Connection::Dialing => None,
        });
        connections.chain(waiting).min()
    }

    /// Handles a timeout: fails requests that took too long, and dials again.
    pub fn handle_timeout(&mut self, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        for number in 0..self.connections.len() {
            match &self.connections[number] {
                Connection::Busy(exchange) if self.answer_due(exchange) <= now => {
                    let ticket = exchange.ticket;
                    self.close(number, actions);
                    self.finish(ticket, None, actions);
                }
                Connection::Busy(exchange) if exchange.suspect_time() <= now => self.close_suspect(number, actions),
                Connection::Idle { since, .. } if since + IDLE_TIMEOUT <= now => self.close(number, actions),
                _ => {}
            }
        }
        // The deadline of a request is never before that of an older one.
        while let Some(&(since, ticket)) = self.oldest.first()
            && self.deadline(since) <= now
        {
            self.finish(ticket, None, actions);
        }
        self.send_waiting(now, actions);
    }

    /// Handles an established connection.
    pub fn handle_connected(&mut self, number: usize, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        self.connections[number] = Connection::Idle { used: false, since: now, was_idle: false };
        self.send_waiting(now, actions);
    }

    /// Handles a connection that could not be made or has ended.
    pub fn handle_lost(&mut self, number: usize, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        match std::mem::replace(&mut self.connections[number], Connection::Closed) {
            Connection::Closed | Connection::Idle { .. } => {}
            Connection::Dialing => self.next_dial = now + REDIAL_AFTER,
            Connection::Busy(exchange) if exchange.reader.ends_with_connection() => {
                self.complete(*exchange, now, actions);
            }
            Connection::Busy(exchange) => self.retry(&exchange, actions),
        }
        self.send_waiting(now, actions);
    }

    /// Handles received bytes.
    pub fn handle_bytes(&mut self, number: usize, mut input: &[u8], now: Millis, actions: &mut Vec<PoolAction<P>>) {
        loop {
            let Connection::Busy(exchange) = &mut self.connections[number] else {
                // A reply without a request: the next reply could not be matched to its request.
                if !input.is_empty() {
                    self.close(number, actions);
                }
                return self.send_waiting(now, actions);
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
                    self.close(number, actions);
                    self.finish(ticket, head.map(too_long), actions);
                    return self.send_waiting(now, actions);
                }
                Err(_) => {
                    let ticket = exchange.ticket;
                    self.close(number, actions);
                    self.finish(ticket, None, actions);
                    return self.send_waiting(now, actions);
                }
            }
        }
    }

    /// Handles the end of a reply.
    fn handle_end(&mut self, number: usize, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        let Connection::Busy(exchange) = std::mem::replace(
            &mut self.connections[number],
            Connection::Idle { used: true, since: now, was_idle: false },
        ) else {
            unreachable!("only called for a busy connection");
        };
        if exchange.is_last || !exchange.head.as_ref().is_some_and(|head| head.keep_alive) {
            self.close(number, actions);
        }
        self.complete(*exchange, now, actions);
    }

    fn close(&mut self, number: usize, actions: &mut Vec<PoolAction<P>>) {
        self.connections[number] = Connection::Closed;
        actions.push(PoolAction::Close(number));
    }

    /// Closes a connection that seems to be dead, together with all idle ones: whatever forgot the
    /// one has forgotten the others too.
    fn close_suspect(&mut self, number: usize, actions: &mut Vec<PoolAction<P>>) {
        self.close_idle(actions);
        let closed = std::mem::replace(&mut self.connections[number], Connection::Closed);
        actions.push(PoolAction::Close(number));
        if let Connection::Busy(mut exchange) = closed {
            // CouchDB may have received the request nevertheless.
            exchange.used = false;
            self.retry(&exchange, actions);
        }
    }

    fn close_idle(&mut self, actions: &mut Vec<PoolAction<P>>) {
        for number in 0..self.connections.len() {
            if matches!(self.connections[number], Connection::Idle { .. }) {
                self.close(number, actions);
            }
        }
    }

    /// Lets the existing connections carry no further request, because CouchDB has moved.
    pub fn retire_connections(&mut self, actions: &mut Vec<PoolAction<P>>) {
        self.close_idle(actions);
        for connection in &mut self.connections {
            if let Connection::Busy(exchange) = connection {
                exchange.is_last = true;
            }
        }
    }

    fn complete(&mut self, exchange: Exchange, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        self.last_answer = now;
        let took = now.saturating_sub(exchange.sent);
        if took >= self.slowest.0 || now >= self.slowest.1 + SLOWEST_KEPT_FOR {
            self.slowest = (took, now);
        }
        let answer = exchange.head.map(|head| {
            let Response { status, auth_cookie, date, .. } = head;
            Ok(Answer { status, auth_cookie, date, body: exchange.body, is_too_long: false })
        });
        self.finish(exchange.ticket, answer, actions);
    }

    /// Sends a request once more whose connection ended before the reply. A connection that has
    /// carried replies was most likely closed while idle. That does not count as an attempt, since
    /// the next connection may be in the same state.
    fn retry(&mut self, exchange: &Exchange, actions: &mut Vec<PoolAction<P>>) {
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

    /// Ends a request; `outcome` is None if there is no reply.
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

    /// Removes a request from the waiting ones, if it is one of them.
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
        (since.max(self.last_answer) + REPLY_TIMEOUT).min(since + LONGEST_WAIT)
    }

    /// Returns when a request that was sent fails. Time in the queue of a silent CouchDB counts
    /// too.
    fn answer_due(&self, exchange: &Exchange) -> Millis {
        let alone = exchange.sent + REPLY_TIMEOUT;
        self.tickets.get(exchange.ticket).map_or(alone, |ticket| alone.min(self.deadline(ticket.since)))
    }

    /// Returns when the next dial is allowed, if all connections are closed.
    fn redial_at(&self) -> Millis {
        let closed = self.connections.iter().all(|connection| matches!(connection, Connection::Closed));
        if closed { self.next_dial } else { Millis::MAX }
    }

    /// Sends waiting requests over idle connections, and dials further ones.
    fn send_waiting(&mut self, now: Millis, actions: &mut Vec<PoolAction<P>>) {
        // A slow CouchDB gets more time than its slowest recent reply took.
        let slowest = if now < self.slowest.1 + SLOWEST_KEPT_FOR { self.slowest.0 } else { 0 };
        let suspect_after = SUSPECT_AFTER.max(2 * slowest);
        for number in 0..self.connections.len() {
            if let Connection::Idle { used, was_idle, .. } = self.connections[number] {
                let Some((ticket, request)) = self.next_request() else { break };
                // A formerly idle connection may be closed, whether it has carried a reply or not.
                let (used, suspect_at) = (used || was_idle, was_idle.then_some(now + suspect_after));
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
            if let Connection::Idle { was_idle, .. } = connection {
                *was_idle = true;
            }
        }
        if now < self.next_dial {
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

    /// Takes the next request that is not cancelled.
    fn next_request(&mut self) -> Option<(Key, Vec<u8>)> {
        while let Some((owner, key)) = self.waiting.pop() {
            let Some(ticket) = self.tickets.get_mut(key) else { continue };
            ticket.sent = true;
            // A request that is not repeatable is not kept.
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
