//! What the tests share: the server as a child process, the stand-in CouchDB, small blocking clients,
//! scripts that drive other clients.

pub mod client;
pub mod couchdb;
pub mod device;
pub mod dns;
pub mod howler;
pub mod proxy;
pub mod script;
pub mod tls;
pub mod wire;

pub mod http;

use std::time::Duration;

use couchdb::{Options, StandIn};

/// The server admin of every stand-in. The password has characters that must be escaped in a URL,
/// and is found by a search of the output whether escaped or not.
pub const ADMIN: &str = "admin";
pub const ADMIN_PASSWORD: &str = "zq7-admin-secret@/:%";
/// A user of every stand-in.
pub const USER: &str = "myuser";
pub const PASSWORD: &str = "zq7-user-secret";
/// A part of every password that the tests use: nothing that a server prints may hold it.
pub const SECRET_MARK: &str = "zq7-";

/// Longest wait for something that is to happen. Generous: machines are shared.
pub const SOON: Duration = Duration::from_secs(20);
/// Longest time to the answer to a log-in when CouchDB gives none.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// A wait after which something that would have happened is taken not to happen.
pub const A_MOMENT: Duration = Duration::from_millis(300);

/// A stand-in CouchDB with a user.
pub fn couchdb() -> StandIn {
    couchdb_with(Options::default())
}

/// A stand-in CouchDB with a user, and with options.
pub fn couchdb_with(options: Options) -> StandIn {
    let options = Options { admin: (ADMIN.into(), ADMIN_PASSWORD.into()), ..options };
    let stand_in = StandIn::start(&options).expect("the stand-in starts");
    stand_in.add_user(USER, PASSWORD, &[]);
    stand_in
}
