//! The tests that run the real binary: one module a subject, and `support` with what they share.
//!
//! What each server prints is searched for passwords and cookies when it ends, and kept in a file below the
//! target folder, which `tests/run.sh` searches once more.

#![allow(clippy::disallowed_methods, reason = "tests measure time and look names up as they like")]
#![allow(unreachable_pub, missing_docs, reason = "one crate that nobody links to")]

mod support;

mod access;
mod attacks;
mod browser;
mod certificates;
mod chaos;
mod check;
mod client_in_browser;
mod client_library;
mod cluster;
mod command_line;
mod console;
mod credentials;
mod deployment;
mod dispatch;
mod engine_io_4;
mod feed;
mod instances;
mod json_protocol;
mod layers;
mod limits;
mod log_blocked;
mod log_format;
mod login_limits;
mod long_lists;
mod names;
mod operation;
mod polling;
mod positions;
mod pouchdb;
mod printed;
mod proxies;
mod readme;
mod real_clients;
mod real_couchdb;
mod restarts;
mod site;
mod slow_clients;
mod socket_io;
mod static_binary;
mod stopping;
mod storm;
mod systemd;
mod tls;
mod tls_clients;
mod upstream;
mod upstream_proxy;
mod url_file;
