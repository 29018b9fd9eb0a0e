//! Tests that run the real binary: one module per subject, and `support` with shared code.
//!
//! When a server ends, `support` searches its output for passwords and cookies. It keeps the output
//! in a file below the target folder, which `tests/run.sh` searches again.

#![allow(clippy::disallowed_methods, reason = "tests may measure time and resolve names")]
#![allow(unreachable_pub, missing_docs, reason = "no other crate links to the tests")]

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
mod words;
