//! couchdb-howler follows one changes feed of CouchDB and notifies tens of thousands of WebSocket
//! clients.
//!
//! ```text
//! CouchDB ──one feed──▶ response ─▶ lines ─▶ Change { database, kind }
//!                                                │
//!                           index: database name ─▶ subscribers        (O(subscribers))
//!                                                │ marks their sessions dirty
//!   end of the turn: each dirty session is flushed once
//!       WebSocket: several frames, ONE write           polling: the parked GET is answered
//! ```
//!
//! A change is a level, not an event: "database X is newer than you know". So a session that cannot
//! be written to keeps a *set* of changed databases, never a queue.
//!
//! # Layers
//!
//! | layer | knows | never touches |
//! |---|---|---|
//! | [`wire`] | bytes ↔ values: HTTP, lines, WebSocket, Engine.IO, Socket.IO, `howler.v1`, CouchDB | sockets, clock, environment, randomness |
//! | [`state`] | machines and tables: subscriptions, sessions, feed, logins, timers, routes | sockets, clock (`now` is an argument), randomness (passed in) |
//! | [`net`] | mio and rustls: streams, connections, listeners, resolver thread | what the bytes mean |
//! | [`server`] | owns all tables, applies the actions that the machines return | the clock |
//! | [`event_loop`] | the turn; the only reader of the clock | |
//!
//! Imports point down only; `tests/layers.rs` checks the sources. Beside the layers:
//!
//! | module | contents |
//! |---|---|
//! | [`config`] | arguments and environment → checked [`config::Config`]; `main` runs it and returns the exit code |
//! | [`check`] | the commands `check` and `healthcheck`, which block; the server uses none of it |
//! | [`logging`] | the log, as text or JSON |
//! | [`systemd`] | notifications to systemd, and sockets from it |
//! | [`demo`] | a small CouchDB for `--demo` |
//!
//! # Manual
//!
//! | page | reader |
//! |---|---|
//! | [Quick start](manual::quick_start) | everybody, first |
//! | [JavaScript client](manual::javascript_client), [PouchDB](manual::pouchdb) | authors of apps |
//! | [Protocol `howler.v1`](manual::howler_v1), [Socket.IO](manual::socket_io) | authors of clients |
//! | [Moving from the Node.js server](manual::migrating) | users of version 1 |
//! | [Deploying](manual::deploying), [Configuration](manual::configuration), [Access](manual::access), [Limits](manual::limits), [Health and metrics](manual::health_and_metrics), [Troubleshooting](manual::troubleshooting) | operators |
//! | [How fast](manual::how_fast), [Capacity](manual::capacity), [Benchmark](manual::benchmark) | planners |
//! | [How it works](manual::how_it_works), [Development](manual::development) | contributors |
//! | [Changes](manual::changes) | everybody, before an update |

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
