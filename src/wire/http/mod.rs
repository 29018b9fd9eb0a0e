//! HTTP/1.1 (RFC 9110, RFC 9112): requests of clients and answers of CouchDB read, our own answers
//! written.
//!
//! | file | contents |
//! |---|---|
//! | `head.rs` | what both kinds of head have in common |
//! | `request.rs` | heads of requests |
//! | `response.rs`, `date.rs` | heads of responses |
//! | `body.rs` | the framing of bodies |
//! | `response_reader.rs` | a whole response, read incrementally |
//! | `answer.rs` | our own answers |

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
