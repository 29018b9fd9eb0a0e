//! Parts that the targets share: ways to split an input as a network could deliver it, and the
//! drivers of sessions, positions, permissions, name lists and the feed.

pub mod access;
pub mod feed;
pub mod lists;
pub mod positions;
pub mod sessions;

use serde_json::Value;

/// Number of ways of [`pieces`].
pub const WAYS: usize = 5;

/// Cuts `data` into pieces. Way 0 leaves it whole, way 1 cuts it into single bytes. The others cut
/// it at points taken from the bytes themselves, into pieces of at most 7, 64 and 1024 bytes, so
/// that a seed is a plain recording without a plan of its cuts.
pub fn pieces(data: &[u8], way: usize) -> Vec<&[u8]> {
    let longest = match way {
        0 => return vec![data],
        1 => return data.chunks(1).collect(),
        2 => 7,
        3 => 64,
        _ => 1024,
    };
    // FNV-1a over the input, then xorshift: every byte moves every cut.
    let mut state = data.iter().fold(0xcbf2_9ce4_8422_2325 ^ way as u64, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    }) | 1;
    let (mut rest, mut pieces) = (data, Vec::new());
    while !rest.is_empty() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // An empty piece now and then: a read that returned nothing.
        let length = (usize::try_from(state % 4096).expect("small") % (longest + 1)).min(rest.len());
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Returns the ends of all pieces, as offsets into the input.
pub fn cuts(data: &[u8], way: usize) -> Vec<usize> {
    let mut end = 0;
    pieces(data, way)
        .iter()
        .map(|piece| {
            end += piece.len();
            end
        })
        .collect()
}

/// Returns whether an input holds the key by which serde_json marks its raw values. A tree of
/// values misreads an object with that key, and so is no oracle.
pub fn confuses_trees(data: &[u8]) -> bool {
    const KEY: &[u8] = b"serde_json::private";
    data.windows(KEY.len()).any(|part| part == KEY)
}

/// Returns the number in front of a revision, parsed naively.
pub fn number_of(revision: &str) -> Option<u32> {
    let digits: String = revision.chars().take_while(char::is_ascii_digit).collect();
    let followed = revision.chars().nth(digits.len()) == Some('-');
    digits.parse::<u128>().ok().filter(|_| followed).and_then(|number| number.try_into().ok())
}

/// Returns a field of an object. serde accepts a list of all `fields` in place of an object.
pub fn field<'a>(of: &'a Value, fields: &[&str], name: &str) -> Option<&'a Value> {
    match of {
        Value::Object(map) => map.get(name),
        Value::Array(values) if values.len() == fields.len() => {
            values.get(fields.iter().position(|field| *field == name)?)
        }
        _ => None,
    }
}
