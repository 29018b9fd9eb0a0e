//! HTTP/1.1 (RFC 9110, RFC 9112): parses requests of clients and responses of CouchDB, and writes
//! responses to clients.
//!
//! | file | contents |
//! |---|---|
//! | `head.rs` | the parts that both kinds of head share |
//! | `request.rs` | heads of requests |
//! | `response.rs`, `date.rs` | heads of responses |
//! | `body.rs` | the framing of bodies |
//! | `response_reader.rs` | whole responses, read incrementally |
//! | `answer.rs` | our own responses |

mod answer;
mod body;
mod date;
mod head;
mod request;
mod response;
mod response_reader;

pub use answer::{Answer, write_response, write_upgrade};
pub use body::{BodyDecoder, BodyError, Chunk, Piece};
pub use date::parse_date;
pub use head::{HeadError, MAX_HEADERS, has_token, head_is_complete, list};
pub use request::{MAX_HEAD, Request, parse_request};
pub use response::{MAX_RESPONSE_HEAD, Response, parse_response};
pub use response_reader::{Part, ResponseError, ResponseReader};
