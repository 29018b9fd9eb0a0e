//! CouchDB's protocol: the lines of its changes feeds, the requests to it, and its responses.
//!
//! | file | contents |
//! |---|---|
//! | `change_kind.rs`, `revision.rs` | the parts of an event |
//! | `feed_line.rs` | the lines of both feeds |
//! | `requests.rs` | all requests to CouchDB |
//! | `login.rs` | credentials, and responses to a login |
//! | `lookup.rs` | event documents of databases, read from `_all_docs` |
//! | `server_info.rs` | version, configuration and epoch of CouchDB |

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
