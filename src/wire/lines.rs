//! Splits a stream of bytes into lines. A line that is whole in the input is returned as a slice of
//! it; only a line that the end of the input cuts is copied.

/// Longest line of a feed, in bytes. Sequences of large clusters take several kilobytes.
pub const MAX_LINE: usize = 64 * 1024;

/// A line, or the lack of one.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line without its line feed.
    Complete(&'a [u8]),
    /// The end of a line over [`MAX_LINE`], which was dropped.
    TooLong,
    /// All input was used and the line goes on.
    NeedMore,
}

/// Reads lines, and holds the first part of a cut line.
#[derive(Debug, Default)]
pub struct LineReader {
    carry: Vec<u8>,
    /// Whether `carry` was returned, so that the next call clears it.
    delivered: bool,
    /// Whether the line is too long, so that its rest is skipped.
    skipping: bool,
}

impl LineReader {
    /// Takes the next line off `input`. Returns the number of bytes used, and the line.
    pub fn next<'a>(&'a mut self, input: &'a [u8]) -> (usize, Line<'a>) {
        if self.delivered {
            self.delivered = false;
            // Free the memory of a long line.
            if self.carry.capacity() > 4096 { self.carry = Vec::new() } else { self.carry.clear() }
        }
        let Some(end) = memchr::memchr(b'\n', input) else {
            self.keep(input);
            return (input.len(), Line::NeedMore);
        };
        let used = end + 1;
        if self.carry.is_empty() && !self.skipping && end <= MAX_LINE {
            return (used, Line::Complete(&input[..end]));
        }
        self.keep(&input[..end]);
        if std::mem::take(&mut self.skipping) {
            return (used, Line::TooLong);
        }
        self.delivered = true;
        (used, Line::Complete(&self.carry))
    }

    fn keep(&mut self, part: &[u8]) {
        if self.skipping {
            return;
        }
        if self.carry.len() + part.len() > MAX_LINE {
            self.carry = Vec::new();
            self.skipping = true;
        } else {
            self.carry.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let (mut reader, mut lines) = (LineReader::default(), Vec::new());
        for part in parts {
            let mut rest = *part;
            loop {
                let (used, line) = reader.next(rest);
                match line {
                    Line::Complete(line) => lines.push(Some(line.to_vec())),
                    Line::TooLong => lines.push(None),
                    Line::NeedMore => break,
                }
                rest = &rest[used..];
            }
        }
        lines
    }

    #[test]
    fn every_split_yields_the_same_lines() {
        let bytes = b"\nabc\n\n\nd\nrest";
        let whole: Vec<_> = [&b""[..], b"abc", b"", b"", b"d"].iter().map(|l| Some(l.to_vec())).collect();
        for a in 0..=bytes.len() {
            for b in a..=bytes.len() {
                assert_eq!(read(&[&bytes[..a], &bytes[a..b], &bytes[b..]]), whole, "{a} {b}");
            }
        }
    }

    #[test]
    fn skips_a_long_line_at_every_split() {
        let long = [vec![b'x'; MAX_LINE + 1], b"\nnext\n".to_vec()].concat();
        let fits = [vec![b'x'; MAX_LINE], b"\nnext\n".to_vec()].concat();
        for at in [0, 1, 1000, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, MAX_LINE + 2, MAX_LINE + 4] {
            assert_eq!(read(&[&long[..at], &long[at..]]), [None, Some(b"next".to_vec())], "{at}");
            assert_eq!(read(&[&fits[..at], &fits[at..]]).iter().flatten().count(), 2, "{at}");
        }
    }
}
