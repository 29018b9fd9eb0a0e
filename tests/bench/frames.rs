//! Frames of WebSockets, as far as a client of the benchmark needs them.

/// A text frame of a client, masked with zeros.
pub fn masked(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes(), true)
}

/// The answer to a ping.
pub fn pong() -> Vec<u8> {
    frame(0x8a, b"", true)
}

/// A text frame of a server.
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

/// What a server said.
pub enum Frame<'a> {
    Text(&'a [u8]),
    Ping,
    Close,
}

/// The first frame of a server in the bytes, and how long it is; None while it is not all there.
pub fn first(bytes: &[u8]) -> Option<(usize, Frame<'_>)> {
    let (&[kind, length], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        126 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => panic!("no message is that long"),
        short => (usize::from(short), rest),
    };
    let payload = rest.get(..length)?;
    let used = bytes.len() - rest.len() + length;
    let frame = match kind {
        0x81 => Frame::Text(payload),
        0x89 => Frame::Ping,
        0x88 => Frame::Close,
        other => panic!("a frame that nobody should send: {other:x}"),
    };
    Some((used, frame))
}
