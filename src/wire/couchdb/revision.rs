//! Revisions of event documents.

/// The revision of an event document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Number in front of the dash: the count of events of this kind, 0 if there was none.
    pub number: u32,
    /// Fingerprint of the part behind the dash, to recognize a repeated line.
    pub mark: u32,
}

impl Revision {
    /// Parses a revision such as `29-967a00dff5e02add41819138abb3284d`. None if no number leads.
    pub fn parse(text: &str) -> Option<Self> {
        let mut number = 0_u32;
        for (place, byte) in text.bytes().enumerate() {
            match byte {
                b'0'..=b'9' => number = number.checked_mul(10)?.checked_add(u32::from(byte - b'0'))?,
                b'-' if place > 0 => return Some(Self { number, mark: fingerprint(&text.as_bytes()[place + 1..]) }),
                _ => return None,
            }
        }
        None
    }
}

/// Returns a fingerprint of a text, computed eight bytes at a time since every line of the feed has
/// one. Two texts collide with a chance of 1 in 4 billion. A forged collision gains nothing, since
/// the numbers in front must be equal as well.
fn fingerprint(text: &[u8]) -> u32 {
    // 2^64 divided by the golden ratio: Fibonacci hashing.
    let mix = |mark: u64, word: u64| {
        let product = (mark ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ product >> 32
    };
    let (words, rest) = text.as_chunks::<8>();
    let mark = words.iter().fold(text.len() as u64, |mark, word| mix(mark, u64::from_le_bytes(*word)));
    let mark = mix(mark, rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    u32::try_from(mark >> 32).expect("half of the bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(text: &str) -> Revision {
        Revision::parse(text).expect("a revision")
    }

    #[test]
    fn revision_is_number_and_fingerprint() {
        assert_eq!(revision("29-967a00df").number, 29);
        assert_eq!(revision("29-967a00df"), revision("29-967a00df"));
        assert_ne!(revision("29-967a00df").mark, revision("29-967a00de").mark);
        for bad in ["", "-", "-a", "a-1", "+1-a", "1", "99999999999-a"] {
            assert_eq!(Revision::parse(bad), None, "{bad}");
        }
    }
}
