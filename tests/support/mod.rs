//! Helpers of the tests: the server as a child process, the stand-in for CouchDB, small blocking
//! clients, and scripts that drive other clients.

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

use std::time::{Duration, Instant};

use couchdb::{Options, StandIn};

/// Name of the server admin of every stand-in.
pub const ADMIN: &str = "admin";
pub const ADMIN_PASSWORD: &str = "zq7-admin-secret@/:%";
/// Name of a user of every stand-in.
pub const USER: &str = "myuser";
pub const PASSWORD: &str = "zq7-user-secret";
/// Part of every password of the tests. The output of a server must not contain it.
pub const SECRET_MARK: &str = "zq7-";

/// Longest wait for an expected event. Generous, because machines are shared.
pub const SOON: Duration = Duration::from_secs(20);
/// Longest time to the response to a login when CouchDB does not reply.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);
/// Wait after which an event counts as absent.
pub const A_MOMENT: Duration = Duration::from_millis(300);

/// Waits until a condition holds; fails after [`SOON`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    retry(|| if condition() { Ok(()) } else { Err(format!("timeout waiting until {what}")) });
}

/// Repeats a question until it succeeds; fails with the last error after [`SOON`].
#[track_caller]
pub fn retry<T>(mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        match ask() {
            Ok(found) => return found,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        // Leaves the processor to the processes that the test waits for.
        std::thread::sleep(PAUSE);
    }
}

/// Starts a stand-in for CouchDB with a user.
pub fn couchdb() -> StandIn {
    couchdb_with(Options::default())
}

/// Starts a stand-in for CouchDB with a user, and with options.
pub fn couchdb_with(options: Options) -> StandIn {
    let options = Options { admin: (ADMIN.into(), ADMIN_PASSWORD.into()), ..options };
    let stand_in = StandIn::start(&options).expect("the stand-in starts");
    stand_in.add_user(USER, PASSWORD, &[]);
    stand_in
}

/// Returns the position of these counts as a server gives it that knows when CouchDB started.
pub fn position(couchdb: &StandIn, counts: &str) -> String {
    format!("{counts}@{:x}", couchdb.latest_start())
}
