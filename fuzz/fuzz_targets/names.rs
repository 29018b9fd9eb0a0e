//! Name resolution: replies of nameservers, and the files that configure it. The first line of an
//! input is a name; the rest is the text of a file and the reply of a nameserver about that name.
//!
//! Asserted:
//! - each valid DNS name gets a query, which is not a reply to itself;
//! - a reply yields the addresses that another reader of DNS messages finds, up to the limit; it is
//!   no reply to another name, kind of address or id;
//! - every file yields a nameserver, and the name itself is among the names to query;
//! - a name in `/etc/hosts` has the addresses of the lines that contain it.

#![no_main]

use std::net::IpAddr;

use couchdb_howler::wire::dns::{Family, MAX_ADDRESSES, Reply, is_name, read_reply, write_query};
use couchdb_howler::wire::resolv_conf::{ResolvConf, Zoned, find_host};
use libfuzzer_sys::fuzz_target;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet};

const ID: u16 = 0x1234;

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let name = String::from_utf8_lossy(&data[..end]);
    let rest = data.get(end + 1..).unwrap_or_default();
    check_files(&String::from_utf8_lossy(rest), &name);
    for family in Family::BOTH {
        let Some(query) = write_query(ID, &name, family) else {
            assert!(!is_name(&name));
            continue;
        };
        assert!(is_name(&name));
        assert_eq!(read_reply(&query, &query, family), None);
        read_reply(rest, &query, family);
        // With the question in front, the input is a reply to it.
        if let Some((fields, records)) = rest.split_at_checked(4) {
            let mut message = query.clone();
            message[2] = fields[0] | 0x80;
            message[3] = fields[1];
            message[7] = fields[2];
            message[9] = fields[3];
            message.extend_from_slice(records);
            check_reply(&message, &query, &name, family);
        }
    }
});

fn check_reply(message: &[u8], query: &[u8], name: &str, family: Family) {
    let reply = read_reply(message, query, family);
    let other = Family::BOTH.into_iter().find(|one| *one != family).expect("there are two");
    for other in
        [write_query(ID + 1, name, family), write_query(ID, name, other), write_query(ID, &format!("x{name}"), family)]
    {
        assert!(other.is_none_or(|other| read_reply(message, &other, family).is_none()));
    }
    let (Some(Reply::Addresses(found)), Ok(packet)) = (reply, Packet::parse(message)) else { return };
    let mut expected: Vec<IpAddr> = Vec::new();
    for record in packet.answers.iter().filter(|record| record.class == CLASS::IN && !record.cache_flush) {
        let address: IpAddr = match (&record.rdata, family) {
            (RData::A(a), Family::V4) => std::net::Ipv4Addr::from(a.address).into(),
            (RData::AAAA(aaaa), Family::V6) => std::net::Ipv6Addr::from(aaaa.address).into(),
            _ => continue,
        };
        if !expected.contains(&address) {
            expected.push(address);
        }
    }
    expected.truncate(MAX_ADDRESSES);
    assert_eq!(found, expected);
}

fn check_files(text: &str, name: &str) {
    let conf = ResolvConf::parse(text);
    assert!((1..=3).contains(&conf.nameservers.len()) && (1..=5).contains(&conf.attempts));
    assert!((1..=5).contains(&conf.timeout_s) && conf.ndots <= 15 && conf.search.len() <= 8);
    let candidates = conf.candidates(name);
    assert!(candidates.iter().any(|one| one == name) && candidates.len() <= 9);
    assert!(candidates.iter().all(|one| one.starts_with(name)));

    let found = find_host(text, name);
    let bare = name.strip_suffix('.').unwrap_or(name);
    let mut expected: Vec<Zoned> = Vec::new();
    for line in text.lines() {
        let line = line.split_once('#').map_or(line, |(line, _)| line);
        let words: Vec<&str> = line.split([' ', '\t', '\r']).filter(|word| !word.is_empty()).collect();
        let Some((address, names)) = words.split_first() else { continue };
        let Some(address) = Zoned::parse(address) else { continue };
        if names.iter().any(|one| one.eq_ignore_ascii_case(bare)) && !expected.contains(&address) {
            expected.push(address);
        }
    }
    expected.truncate(16);
    assert_eq!(found, expected);
}
