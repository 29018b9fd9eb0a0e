//! A reading: the requests that find out which nodes CouchDB has, and when they started.

use crate::wire::nodes;

/// Most nodes that are asked in one reading.
const MAX_ASKED: usize = 32;

/// A request to CouchDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `GET /_membership`
    Membership,
    /// `GET /_node/_local`
    Name,
    /// `GET /_node/{name}/_system`; None for `_local`.
    System(Option<Box<str>>),
}

/// Reply of CouchDB.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Status code.
    pub status: u16,
    /// `Date` of the reply, in seconds since 1970.
    pub date: Option<u64>,
    /// Body.
    pub body: &'a [u8],
}

#[derive(Debug)]
pub(super) struct Reading {
    pub(super) request: Request,
    /// Nodes to ask before others.
    pub(super) first: Vec<Box<str>>,
    /// Nodes that are left to ask, the next one last.
    pub(super) left: Vec<Box<str>>,
    /// Whether the feed was opened or broke meanwhile, so that some replies are older than that.
    pub(super) is_stale: bool,
    pub(super) found: Vec<(Box<str>, u32, u64)>,
    /// Name of the node that answers for itself; None unless nodes cannot be asked by name.
    pub(super) own_name: Option<Box<str>>,
    /// Whether each reading reaches only one node, which answers for itself.
    pub(super) one_at_a_time: bool,
    /// Date of the first valid reply.
    pub(super) date: u32,
    pub(super) refused: bool,
}

impl Reading {
    pub(super) fn new(first: Vec<Box<str>>) -> Self {
        Self {
            request: Request::Membership,
            first,
            left: Vec::new(),
            is_stale: false,
            found: Vec::new(),
            own_name: None,
            one_at_a_time: false,
            date: 0,
            refused: false,
        }
    }

    /// Handles the reply to its request. Returns whether there is another request.
    pub(super) fn handle_reply(&mut self, reply: Option<Reply<'_>>, count: &mut Option<usize>) -> bool {
        let ok = reply.filter(|reply| reply.status == 200);
        // A proxy without CouchDB, or a busy CouchDB, may succeed the next time.
        self.refused =
            reply.is_some_and(|reply| matches!(reply.status, 400..=499) && !matches!(reply.status, 408 | 429));
        match std::mem::replace(&mut self.request, Request::Membership) {
            Request::Membership => match ok.and_then(|reply| nodes::read_membership(reply.body)) {
                Some(connected) => self.handle_membership(connected, count),
                None if self.refused => self.ask_answering_node(),
                None => false,
            },
            Request::Name => self.handle_name(ok.and_then(|reply| nodes::read_node_name(reply.body))),
            Request::System(name) => self.handle_system(name.as_deref(), ok),
        }
    }

    fn handle_membership(&mut self, connected: Vec<Box<str>>, count: &mut Option<usize>) -> bool {
        // Nodes that are down belong to the cluster too.
        *count = (*count).max(Some(connected.len()));
        if connected.len() == 1 {
            self.request = Request::System(None);
            return true;
        }
        self.left = connected;
        self.left.truncate(MAX_ASKED);
        self.left.sort_by_key(|name| self.first.contains(name));
        self.ask_next()
    }

    fn handle_name(&mut self, name: Option<Box<str>>) -> bool {
        match (name, &self.own_name) {
            (Some(name), None) => {
                self.own_name = Some(name);
                self.request = Request::System(None);
                return true;
            }
            (Some(name), Some(before)) if name == *before => {}
            // Behind a load balancer it is unknown which node has this uptime.
            _ => self.found.clear(),
        }
        false
    }

    fn handle_system(&mut self, name: Option<&str>, reply: Option<Reply<'_>>) -> bool {
        let uptime = reply.and_then(|reply| nodes::read_uptime(reply.body));
        let date = reply.and_then(|reply| reply.date);
        let start = date.zip(uptime).and_then(|(date, uptime)| nodes::start_of(date, uptime));
        if let (Some(start), Some(uptime), Some(date)) = (start, uptime, date) {
            let name = name.map(Into::into).or_else(|| self.own_name.clone()).unwrap_or_default();
            if self.found.is_empty() {
                self.date = u32::try_from(date).unwrap_or(u32::MAX);
            }
            self.found.push((name, start, uptime));
        }
        match name {
            Some(_) => self.ask_next() || self.found.is_empty() && self.refused && self.ask_answering_node(),
            None if self.one_at_a_time && !self.found.is_empty() => {
                self.request = Request::Name;
                true
            }
            None => false,
        }
    }

    fn ask_next(&mut self) -> bool {
        let next = self.left.pop();
        let more = next.is_some();
        if more {
            self.request = Request::System(next);
        }
        more
    }

    /// Falls back to asking the node that answers for its own start, because nodes cannot be asked
    /// by name.
    fn ask_answering_node(&mut self) -> bool {
        self.one_at_a_time = true;
        self.request = Request::Name;
        true
    }
}
