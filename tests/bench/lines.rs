//! Names of databases, and the lines about them in the changes feed.

use std::fmt::Write as _;

/// The database that all clients share.
pub const SHARED: &str = "everyone";
/// Size in bytes at which CouchDB ends a chunk of lines.
const CHUNK: usize = 1_490;

/// Returns the name of one client's database, as CouchDB names user databases.
pub fn own(number: usize) -> String {
    let mut name = "userdb-".to_owned();
    for byte in format!("user-{number:05}").bytes() {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Returns the name of one of many databases of one client.
pub fn one_of_many(number: usize) -> String {
    format!("project-{number:04}")
}

/// Writes lines, each with a sequence of its own.
#[derive(Default)]
pub struct Lines {
    written: u64,
}

impl Lines {
    /// Writes the line of an update, as long as those of a small cluster.
    pub fn write(&mut self, out: &mut String, database: &str, revision: u32) {
        self.write_kind(out, "updated", database, revision);
    }

    /// Writes the line of any kind of event.
    pub fn write_kind(&mut self, out: &mut String, kind: &str, database: &str, revision: u32) {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        self.written += 1;
        let _ = write!(out, "{{\"seq\":\"{}-g1AAAACb", self.written);
        let mut state = self.written.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for _ in 0..120 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            out.push(char::from(DIGITS[(state >> 58) as usize]));
        }
        let mark = u128::from(state) << 64 | u128::from(self.written);
        let _ = writeln!(out, "\",\"id\":\"{kind}:{database}\",\"changes\":[{{\"rev\":\"{revision}-{mark:032x}\"}}]}}");
    }
}

/// Encodes lines in HTTP chunks of the size that CouchDB uses.
pub fn chunked(lines: &str) -> Vec<u8> {
    let mut out = String::with_capacity(lines.len() + lines.len() / 100 + 32);
    let mut chunk = 0..0;
    for line in lines.split_inclusive('\n') {
        chunk.end += line.len();
        if chunk.len() >= CHUNK {
            push_chunk(&mut out, &lines[chunk.clone()]);
            chunk.start = chunk.end;
        }
    }
    push_chunk(&mut out, &lines[chunk]);
    out.into_bytes()
}

fn push_chunk(out: &mut String, lines: &str) {
    if !lines.is_empty() {
        let _ = write!(out, "{:x}\r\n{lines}\r\n", lines.len());
    }
}
