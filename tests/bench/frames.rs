//! The subset of WebSocket framing that the benchmark needs.

/// Returns a text frame of a client, masked with zeros.
pub fn masked(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes(), true)
}

/// Returns a pong frame of a client.
pub fn pong() -> Vec<u8> {
    frame(0x8a, b"", true)
}

/// Returns a text frame of a server.
pub fn plain(text: &[u8]) -> Vec<u8> {
    frame(0x81, text, false)
}

fn frame(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut out = vec![first];
    match u16::try_from(payload.len()).expect("messages of the benchmark are short") {
        length @ 0..=125 => out.push(mask | length as u8),
        length => {
            out.push(mask | 0x7e);
            out.extend(length.to_be_bytes());
        }
    }
    if masked {
        out.extend([0; 4]);
    }
    out.extend_from_slice(payload);
    out
}

/// A frame of a server.
pub enum Frame<'a> {
    Text(&'a [u8]),
    Ping,
    Close,
}

/// Parses the first frame of a server. Returns its length and content, or `None` if it is
/// incomplete.
pub fn first(bytes: &[u8]) -> Option<(usize, Frame<'_>)> {
    let (&[kind, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        126 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => panic!("the frame is too long for the benchmark"),
        short => (usize::from(short), rest),
    };
    let payload = rest.get(..length)?;
    let used = bytes.len() - rest.len() + length;
    let frame = match kind {
        0x81 => Frame::Text(payload),
        0x89 => Frame::Ping,
        0x88 => Frame::Close,
        other => panic!("unexpected frame type: {other:x}"),
    };
    Some((used, frame))
}
