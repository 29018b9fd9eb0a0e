//! How TLS is spoken, by rustls with ring, in versions 1.2 and 1.3: with CouchDB, trusting the roots of Mozilla that
//! are built in and those of the operator; and with clients, by the certificate of the operator.
//!
//! | file | contents |
//! |---|---|
//! | `client.rs` | the configurations of a client |
//! | `verifier.rs`, `validity.rs` | which certificate of a server is trusted |
//! | `identity.rs` | the configuration of the server, from its certificate and key |
//! | `pem.rs` | certificates and keys in files |
//! | `explain.rs` | errors in words |
//! | `provider.rs` | the cryptography, and randomness |

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
pub(super) use verifier::holds_no_name;
