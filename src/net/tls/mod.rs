//! TLS 1.2 and 1.3, by rustls with ring.
//!
//! With CouchDB, the roots of Mozilla are built in, and the operator may add others. Clients see
//! the certificate of the operator.
//!
//! | file | contents |
//! |---|---|
//! | `client.rs` | configurations of a client |
//! | `verifier.rs`, `validity.rs` | the rule which certificate of a server is trusted |
//! | `identity.rs` | configuration of the server, from its certificate and key |
//! | `pem.rs` | certificates and keys in files |
//! | `explain.rs` | errors in words |
//! | `provider.rs` | cryptography and randomness |

mod client;
mod explain;
mod identity;
mod pem;
mod provider;
mod validity;
mod verifier;

pub use client::{client_config, couchdb_config, pinned_config, server_name};
pub(super) use explain::{explain_client, explain_server};
pub use identity::Identity;
pub use provider::random_bytes;
pub(super) use verifier::has_no_name;
