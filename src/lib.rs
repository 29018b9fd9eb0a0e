//! couchdb-howler: one changes feed of CouchDB in, notifications to tens of thousands of WebSockets out.
//!
//! ```text
//! CouchDB ──one feed──▶ response ─▶ lines ─▶ Change { database, kind }
//!                                                │
//!                           index: database name ─▶ subscribers        (O(subscribers))
//!                                                │ marks their sessions
//!   end of the turn: each marked session is flushed once
//!       WebSocket: frames put together, ONE write      polling: the parked GET is answered
//! ```
//!
//! A change is a level, not an event: "database X is newer than you know". So a session that cannot
//! be written to keeps a *set* of changed databases, never a queue.
//!
//! | layer | knows | never touches |
//! |---|---|---|
//! | [`wire`] | bytes ↔ values: HTTP, body framing, lines, WebSocket, Engine.IO, Socket.IO, `howler.v1`, CouchDB | sockets, clock, environment, randomness |
//! | [`state`] | machines and tables: subscriptions, sessions, feed, log-ins, timers, routes | sockets, clock (`now` is an argument), randomness (handed in) |
//! | [`net`] | mio and rustls: streams, connections, listener, resolver thread | what the bytes mean |
//! | [`server`] | owns all tables, carries out what the machines ask for | the clock |
//! | [`event_loop`] | the turn; the only place that reads the clock | |
//! | [`check`] | commands that ask and end: they may block, and the server uses none of it | |
//! | [`logging`] | lines of text or JSON | what they are about |
//! | [`systemd`] | what systemd wants to know, and the sockets that it hands over | what the server does |
//! | [`config`] and `main` | arguments and environment → checked [`config::Config`] → run → exit code | |
//!
//! Imports point down only; `tests/layers.rs` reads the sources and fails on one that does not.
//! [`manual`] is the manual for users and operators.
//! [`demo`] stands beside: a small CouchDB for `--demo`.

pub mod check;
pub mod config;
pub mod demo;
pub mod event_loop;
pub mod logging;
pub mod manual;
pub mod net;
pub mod server;
pub mod state;
pub mod systemd;
pub mod wire;
