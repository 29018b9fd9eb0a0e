//! CouchDB's side of the wire: the lines of its changes feeds, the requests to it, and its answers.
//!
//! | file | contents |
//! |---|---|
//! | `change_kind.rs`, `revision.rs` | what a line of a feed says of a database |
//! | `feed_line.rs` | the lines of both feeds |
//! | `requests.rs` | every request that is sent to CouchDB |
//! | `login.rs` | credentials, and the answers to a login |
//! | `lookup.rs` | positions of databases, read by `_all_docs` |
//! | `server_info.rs` | version, configuration and epoch |

mod change_kind;
mod feed_line;
mod login;
pub mod lookup;
mod requests;
mod revision;
mod server_info;

pub use change_kind::ChangeKind;
pub use feed_line::{FeedLine, parse_feed_line, parse_last_seq};
pub use login::{Credentials, Identity, LoginError, MAX_CREDENTIAL, cookie_life, read_login, read_own_roles};
pub use requests::{FeedSource, Requests};
pub use revision::Revision;
pub use server_info::{
    GLOBAL_CHANGES_SECTION, MAX_WRITE_DELAY, UPDATE_DB, Welcome, read_config, read_epoch, read_welcome,
};
