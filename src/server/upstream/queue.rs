//! A queue of requests to CouchDB. Requests wait only for others of their queue: a storm of logins
//! delays nothing else.

use crate::server::purpose::Purpose;
use crate::state::pool::{Pool, PoolAction};
use crate::state::table::Key;

/// A pool, its connections by their numbers, and its actions.
#[derive(Debug)]
pub(super) struct RequestQueue {
    pub(super) pool: Pool<Purpose>,
    pub(super) connections: Vec<Option<Key>>,
    pub(super) actions: Vec<PoolAction<Purpose>>,
}

impl RequestQueue {
    pub(super) fn new(size: usize, max_body: usize, max_waiting: usize) -> Self {
        Self { pool: Pool::new(size, max_body, max_waiting), connections: vec![None; size], actions: Vec::new() }
    }
}
