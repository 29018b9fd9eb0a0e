//! DNS messages (RFC 1035 section 4): queries for the addresses of a name, and replies.
//!
//! A query holds one question, and only records with addresses are read. Nothing behind the answer
//! section is read, so an odd record there does not spoil a reply. Names in a reply are skipped,
//! since a recursive nameserver puts the addresses of all aliases into the reply.
//!
//! No crate fits: those without an asynchronous runtime read all records of a message or none, and
//! reserve memory for as many as its header claims.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most addresses of one family that are taken from a reply.
pub const MAX_ADDRESSES: usize = 16;
/// Longest name without a final dot, in bytes (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
const HEADER: usize = 12;
/// Class of the internet.
const IN: u16 = 1;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 (A records).
    V4,
    /// IPv6 (AAAA records, RFC 3596).
    V6,
}

impl Family {
    /// Both families, the more common one first.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn record(self) -> u16 {
        match self {
            Self::V4 => 1,
            Self::V6 => 28,
        }
    }

    fn read(self, data: &[u8]) -> Option<IpAddr> {
        match self {
            Self::V4 => data.try_into().ok().map(|four: [u8; 4]| Ipv4Addr::from(four).into()),
            Self::V6 => data.try_into().ok().map(|sixteen: [u8; 16]| Ipv6Addr::from(sixteen).into()),
        }
    }
}

/// The reply of a nameserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Addresses, at most [`MAX_ADDRESSES`]; empty if the name has none of this family.
    Addresses(Vec<IpAddr>),
    /// The name does not exist (NXDOMAIN).
    NoSuchName,
    /// The nameserver does not answer the question, with this code (RFC 1035 section 4.1.1).
    Failed(u8),
    /// The addresses that fit. TCP is needed for the whole reply.
    Truncated(Vec<IpAddr>),
}

/// Writes a query. None if DNS can have no such name.
pub fn write_query(id: u16, name: &str, family: Family) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + name.len() + 6);
    // A standard query with recursion desired (RD) and one question.
    for field in [id, 0x0100, 1, 0, 0, 0] {
        message.extend_from_slice(&u16::to_be_bytes(field));
    }
    write_name(name, &mut message)?;
    for field in [family.record(), IN] {
        message.extend_from_slice(&u16::to_be_bytes(field));
    }
    Some(message)
}

/// Returns whether DNS can have such a name. A final dot is allowed.
pub fn is_name(name: &str) -> bool {
    write_name(name, &mut Vec::new()).is_some()
}

fn write_name(name: &str, message: &mut Vec<u8>) -> Option<()> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > MAX_NAME {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|_| (1..=MAX_LABEL).contains(&label.len()))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    Some(())
}

/// Parses the reply to a query of [`write_query`]. None if the message is malformed or replies to
/// another query.
pub fn read_reply(message: &[u8], query: &[u8], family: Family) -> Option<Reply> {
    let mut reader = Reader(message);
    let [id, flags, questions, answers, _, _] =
        [reader.number()?, reader.number()?, reader.number()?, reader.number()?, reader.number()?, reader.number()?];
    let is_response = flags & 0x8000 != 0 && flags & 0x7800 == 0;
    let code = u8::try_from(flags & 0x000f).expect("four bits");
    if !is_response || id.to_be_bytes() != *query.first_chunk()? {
        return None;
    }
    match questions {
        1 => {
            let asked = query.get(HEADER..)?;
            if !reader.take(asked.len())?.eq_ignore_ascii_case(asked) {
                return None;
            }
        }
        // Some nameservers that refuse leave the question out.
        0 if code != 0 => {}
        _ => return None,
    }
    match code {
        0 => {}
        3 => return Some(Reply::NoSuchName),
        code => return Some(Reply::Failed(code)),
    }
    let mut addresses = Vec::new();
    let is_whole = (0..answers).try_for_each(|_| reader.answer(family, &mut addresses)).is_some();
    if flags & 0x0200 != 0 {
        return Some(Reply::Truncated(addresses));
    }
    is_whole.then_some(Reply::Addresses(addresses))
}

/// The rest of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Skips a name, which ends with an empty label or with a pointer to the rest (RFC 1035 section
    /// 4.1.4).
    fn skip_name(&mut self) -> Option<()> {
        loop {
            let length = self.take(1)?[0];
            match length {
                0 => return Some(()),
                0xc0.. => return self.take(1).map(drop),
                0x40.. => return None,
                _ => self.take(usize::from(length))?,
            };
        }
    }

    /// Takes a record, and adds the address that it holds.
    fn answer(&mut self, family: Family, addresses: &mut Vec<IpAddr>) -> Option<()> {
        self.skip_name()?;
        let (record, class) = (self.number()?, self.number()?);
        // The time to live does not matter, since nothing is cached.
        self.take(4)?;
        let length = self.number()?;
        let data = self.take(usize::from(length))?;
        if record == family.record() && class == IN {
            let address = family.read(data)?;
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Some(())
    }
}

/// Returns the name of a response code.
pub fn code_name(code: u8) -> &'static str {
    match code {
        1 => "FORMERR",
        2 => "SERVFAIL",
        4 => "NOTIMP",
        5 => "REFUSED",
        9 => "NOTAUTH",
        _ => "an error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a reply to `query` with these flags and records.
    fn reply(query: &[u8], flags: u16, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = query.to_vec();
        message[2..4].copy_from_slice(&flags.to_be_bytes());
        message[6..8].copy_from_slice(&u16::try_from(records.len()).unwrap().to_be_bytes());
        for (record, data) in records {
            message.extend_from_slice(&[0xc0, 12]);
            for field in [*record, IN, 0, 60, u16::try_from(data.len()).unwrap()] {
                message.extend_from_slice(&field.to_be_bytes());
            }
            message.extend_from_slice(data);
        }
        message
    }

    const ALIAS: &[u8] = b"\x01b\xc0\x0e";
    const SIX: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[test]
    fn writes_a_query() {
        let expected = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02db\x07example\x00\x00\x1c\x00\x01";
        assert_eq!(write_query(0x1234, "db.example", Family::V6).as_deref(), Some(&expected[..]));
        assert_eq!(write_query(0x1234, "db.example.", Family::V6).as_deref(), Some(&expected[..]));
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        assert!(is_name(&longest) && is_name(&format!("{longest}.")));
        for name in ["", ".", "a..b", ".a", &format!("{label}a"), &format!("{longest}a")] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn reads_replies() {
        let four = write_query(7, "a.example", Family::V4).unwrap();
        let six = write_query(7, "a.example", Family::V6).unwrap();
        let one: IpAddr = [192, 0, 2, 1].into();
        let read = |flags, records: &[(u16, &[u8])]| read_reply(&reply(&four, flags, records), &four, Family::V4);
        let both = [(5, ALIAS), (1, &[192, 0, 2, 1]), (1, &[192, 0, 2, 1]), (46, b"x")];
        assert_eq!(read(0x8180, &both), Some(Reply::Addresses(vec![one])));
        assert_eq!(read(0x8180, &[]), Some(Reply::Addresses(Vec::new())));
        assert_eq!(read(0x8183, &[]), Some(Reply::NoSuchName));
        assert_eq!(read(0x8182, &[]), Some(Reply::Failed(2)));
        assert_eq!(read(0x8185, &both), Some(Reply::Failed(5)));
        assert_eq!(read(0x8380, &both[..2]), Some(Reply::Truncated(vec![one])));
        let addresses = read_reply(&reply(&six, 0x8180, &[(28, &SIX)]), &six, Family::V6);
        assert_eq!(addresses, Some(Reply::Addresses(vec![SIX.into()])));
        // A query, another operation, and an address of the wrong length.
        for (flags, records) in [(0x0100, &both[..]), (0x9980, &both), (0x8180, &[(1, &SIX)])] {
            assert_eq!(read(flags, records), None);
        }
        // A reply without the question, as some nameservers that refuse send it.
        let mut bare = reply(&four, 0x8185, &[])[..HEADER].to_vec();
        bare[5] = 0;
        assert_eq!(read_reply(&bare, &four, Family::V4), Some(Reply::Failed(5)));
        bare[3] = 0x80;
        assert_eq!(read_reply(&bare, &four, Family::V4), None);
    }

    #[test]
    fn rejects_reply_to_another_query() {
        let query = write_query(7, "a.example", Family::V4).unwrap();
        let message = reply(&query, 0x8180, &[(1, &[192, 0, 2, 1])]);
        let capitals = message.to_ascii_uppercase();
        assert!(read_reply(&capitals, &query, Family::V4).is_some(), "names have no case");
        for other in [
            write_query(8, "a.example", Family::V4),
            write_query(7, "b.example", Family::V4),
            write_query(7, "a.exampl", Family::V4),
            write_query(7, "a.example", Family::V6),
        ] {
            assert_eq!(read_reply(&message, &other.unwrap(), Family::V4), None);
        }
    }

    #[test]
    fn rejects_every_prefix_of_a_reply() {
        let query = write_query(7, "a.example", Family::V4).unwrap();
        let message = reply(&query, 0x8180, &[(5, ALIAS), (1, &[192, 0, 2, 1])]);
        let cut = reply(&query, 0x8380, &[(5, ALIAS), (1, &[192, 0, 2, 1])]);
        for end in 0..message.len() {
            assert_eq!(read_reply(&message[..end], &query, Family::V4), None, "{end}");
            let expected = (end >= query.len()).then(|| Reply::Truncated(Vec::new()));
            assert_eq!(read_reply(&cut[..end], &query, Family::V4), expected, "{end}");
        }
    }

    #[test]
    fn limits_the_number_of_addresses() {
        let query = write_query(7, "a.example", Family::V4).unwrap();
        let data: Vec<[u8; 4]> = (0..200).map(|number| [10, 0, 0, number]).collect();
        let records: Vec<(u16, &[u8])> = data.iter().map(|one| (1, &one[..])).collect();
        let Some(Reply::Addresses(found)) = read_reply(&reply(&query, 0x8180, &records), &query, Family::V4) else {
            panic!("a reply")
        };
        assert_eq!(found.len(), MAX_ADDRESSES);
    }
}
