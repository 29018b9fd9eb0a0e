//! A connection of this server to the CouchDB of the demo, in a thread of its own.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::couchdb::{CouchDb, Feed, Reply, Request};
use crate::wire::http::{self, Answer};

/// Longest head of a request, in bytes.
const HEAD_LIMIT: u64 = 16 * 1024;
/// Longest body of a request, in bytes.
const BODY_LIMIT: usize = 4 * 1024 * 1024;
/// The date of HTTP (RFC 9110 section 5.6.7).
const DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// Serves one request after the other until the peer closes the connection.
///
/// # Errors
/// If the connection breaks, or if a request is no text or too long.
pub(super) fn serve(stream: &TcpStream, couchdb: &CouchDb) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(head) = read_head(&mut reader)? {
        let mut request = Request::parse(&head, b"");
        if request.content_length > BODY_LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; request.content_length];
        reader.read_exact(&mut body)?;
        request.body = &body;
        let now = OffsetDateTime::now_utc();
        match couchdb.reply(&request, u64::try_from(now.unix_timestamp()).unwrap_or(0)) {
            Reply::Json(status, cookie, body) => write_reply(stream, now, status, cookie.as_deref(), &body)?,
            Reply::Feed(feed) => return serve_feed(stream, couchdb, feed),
        }
    }
    Ok(())
}

/// Reads the head of a request with the empty line at its end; None if the peer closed the
/// connection.
fn read_head(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<String>> {
    let mut head = String::new();
    let mut reader = reader.take(HEAD_LIMIT);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

fn write_reply(
    mut stream: &TcpStream,
    now: OffsetDateTime,
    status: u16,
    cookie: Option<&str>,
    body: &str,
) -> io::Result<()> {
    let date = now.format(DATE).expect("a time has all that the format names");
    let mut fields = vec![("Content-Type", "application/json"), ("Date", &*date)];
    fields.extend(cookie.map(|cookie| ("Set-Cookie", cookie)));
    let mut bytes = Vec::new();
    let answer = Answer { status, fields: &fields, body: body.as_bytes(), head_only: false, keep_alive: true };
    http::write_response(&mut bytes, &answer);
    stream.write_all(&bytes)
}

/// Sends events and heartbeats until the peer closes the connection.
fn serve_feed(mut stream: &TcpStream, couchdb: &CouchDb, mut feed: Feed) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n";
    stream.write_all(head.as_bytes())?;
    loop {
        let databases = couchdb.databases.wait_for_events(feed.since, feed.heartbeat);
        let lines = feed.next_lines(&databases);
        drop(databases);
        let chunk = if lines.is_empty() { "\n" } else { &lines };
        stream.write_all(format!("{:x}\r\n{chunk}\r\n", chunk.len()).as_bytes())?;
    }
}
