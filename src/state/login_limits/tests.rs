use super::*;

const HERE: &str = "192.0.2.1";
const THERE: &str = "192.0.2.2";
/// CouchDB's window and one second, in milliseconds.
const WINDOW: Millis = 301_000;

type Limits = LoginLimits<u32>;

fn at(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn admit_as(limits: &mut Limits, address: &str, by_name: bool, name: &str, password: &str, now: Millis) -> Admission {
    let is_right = u32::from(password == "p");
    limits.admit(at(address), Kind::Password { name, password, by_name }, now, || is_right, now)
}

fn admit(limits: &mut Limits, address: &str, name: &str, password: &str, now: Millis) -> Admission {
    admit_as(limits, address, false, name, password, now)
}

/// Logs in with an immediate outcome. Returns whether CouchDB was asked.
fn ask(limits: &mut Limits, address: &str, name: &str, password: &str, outcome: Outcome, now: Millis) -> bool {
    let admission = admit(limits, address, name, password, now);
    finish(limits, admission, outcome, now)
}

fn finish(limits: &mut Limits, admission: Admission, outcome: Outcome, now: Millis) -> bool {
    let Admission::Ask(key) = admission else { return false };
    limits.finish(key, outcome, now);
    true
}

fn asked(admissions: &[Admission]) -> Vec<Key> {
    let key = |admission: &Admission| if let Admission::Ask(key) = admission { Some(*key) } else { None };
    admissions.iter().filter_map(key).collect()
}

/// Takes all logins that may proceed or are rejected.
fn drain(limits: &mut Limits, now: Millis) -> (Vec<Key>, Vec<Rejection>) {
    let (mut keys, mut rejections) = (Vec::new(), Vec::new());
    while let Some((_, verdict)) = limits.next(now) {
        match verdict {
            Ok(key) => keys.push(key),
            Err(rejection) => rejections.push(rejection),
        }
    }
    (keys, rejections)
}

fn assert_empty(limits: &mut Limits, now: Millis) {
    limits.forget(now);
    assert!(limits.accounts.is_empty() && limits.budgets.is_empty(), "{limits:?}");
    assert!(limits.waiting == 0 && limits.waiting_of.is_empty() && limits.attempts.is_empty());
}

#[test]
fn at_most_four_wrong_passwords_in_any_five_minutes() {
    let mut limits = Limits::new(100);
    let mut times: Vec<Millis> = Vec::new();
    for second in 0..3_600 {
        let now = second * 1_000;
        match admit(&mut limits, HERE, "u", "x", now) {
            Admission::Ask(key) => {
                limits.finish(key, Outcome::Wrong, now);
                times.push(second);
            }
            Admission::Reject(Rejection::Address(wait)) => assert!((1..=WINDOW).contains(&wait)),
            other => panic!("{other:?}"),
        }
    }
    assert!(times.len() > 40, "{times:?}");
    assert!(times.windows(5).all(|five| five[4] - five[0] >= 300), "{times:?}");
    assert!(ask(&mut limits, THERE, "u", "p", Outcome::Right, 3_600_000));
    assert!(ask(&mut limits, HERE, "v", "p", Outcome::Right, 3_600_000));
    assert_empty(&mut limits, 3_600_000 + WINDOW);
}

#[test]
fn a_rejection_contains_the_wait_until_the_next_login() {
    let mut limits = Limits::new(100);
    for now in [0, 10_000, 20_000, 30_000] {
        assert!(ask(&mut limits, HERE, "u", "x", Outcome::Wrong, now));
    }
    let Admission::Reject(Rejection::Address(wait)) = admit(&mut limits, HERE, "u", "x", 40_000) else { panic!() };
    assert_eq!(wait, WINDOW - 40_000);
    assert!(!ask(&mut limits, HERE, "u", "x", Outcome::Wrong, 40_000 + wait - 1));
    assert!(ask(&mut limits, HERE, "u", "x", Outcome::Wrong, 40_000 + wait));
    assert!(!ask(&mut limits, HERE, "u", "x", Outcome::Wrong, 40_000 + wait));
}

#[test]
fn logins_in_flight_count_for_the_account_also_after_a_right_password() {
    let mut limits = Limits::new(100);
    assert!(ask(&mut limits, HERE, "u", "p", Outcome::Right, 0));
    let admitted: Vec<_> = (0..50).map(|n| admit(&mut limits, HERE, "u", &format!("x{n}"), 1)).collect();
    let mut under_way = asked(&admitted);
    let mut count = 0;
    while let Some(key) = under_way.pop() {
        count += 1;
        limits.finish(key, Outcome::Wrong, 2);
        under_way.extend(drain(&mut limits, 2).0);
    }
    assert_eq!(count, 3, "one is reserved for the right password");
    let Admission::Reject(Rejection::Address(wait)) = admit(&mut limits, HERE, "u", "p", 3) else {
        panic!("too many guesses are not compared")
    };
    assert!(wait <= 10_000);
    assert!(ask(&mut limits, HERE, "u", "p", Outcome::Right, 3 + wait));
    assert_empty(&mut limits, 400_000);
}

#[test]
fn a_storm_of_right_logins_succeeds() {
    let mut limits = Limits::new(1_000);
    let admitted: Vec<_> = (0..300).map(|_| admit(&mut limits, HERE, "u", "p", 0)).collect();
    let mut under_way = asked(&admitted);
    assert_eq!((under_way.len(), limits.waiting()), (3, 297));
    let (mut count, mut most) = (0, 0);
    while let Some(key) = under_way.pop() {
        count += 1;
        limits.finish(key, Outcome::Right, 1);
        under_way.extend(drain(&mut limits, 1).0);
        most = most.max(under_way.len());
    }
    assert_eq!((count, most), (300, 16), "the password is known to be right");
    assert_empty(&mut limits, 1);
}

/// Only the user knows the password that was right, so it goes before all waiting guesses.
#[test]
fn clients_with_the_password_go_before_clients_that_guess() {
    let mut limits = Limits::new(1_000);
    let first = admit(&mut limits, HERE, "u", "p", 0);
    let guesses: Vec<_> = (0..50).map(|n| admit(&mut limits, HERE, "u", &format!("x{n}"), 0)).collect();
    let right: Vec<_> = (0..50).map(|_| admit(&mut limits, HERE, "u", "p", 0)).collect();
    assert_eq!((asked(&guesses).len(), asked(&right).len()), (2, 0));
    finish(&mut limits, first, Outcome::Right, 1);
    for key in asked(&guesses) {
        limits.finish(key, Outcome::Wrong, 1);
    }
    let (mut served, mut tried, mut rejected) = (0, 0, 0);
    while let Some((is_right, verdict)) = limits.next(2) {
        match (verdict, is_right) {
            (Ok(key), 1) => {
                served += 1;
                limits.finish(key, Outcome::Right, 2);
            }
            (Ok(key), _) => {
                tried += 1;
                assert_eq!(served, 50);
                limits.finish(key, Outcome::Wrong, 2);
            }
            (Err(_), _) => rejected += 1,
        }
    }
    assert_eq!((served, tried, rejected), (50, 1, 47));
}

#[test]
fn clients_with_an_old_password_do_not_lock_the_account() {
    let mut limits = Limits::new(1_000);
    assert!(ask(&mut limits, HERE, "u", "old", Outcome::Right, 0));
    let admitted: Vec<_> = (0..300).map(|_| admit(&mut limits, HERE, "u", "old", 1)).collect();
    let (mut under_way, mut count) = (asked(&admitted), 0);
    while let Some(key) = under_way.pop() {
        count += 1;
        limits.finish(key, Outcome::Wrong, 2);
        under_way.extend(drain(&mut limits, 2).0);
    }
    assert_eq!(count, 4);
    assert_eq!(limits.waiting(), 0);
}

#[test]
fn unanswered_logins_count_as_failures_until_the_password_is_right() {
    let mut limits = Limits::new(100);
    for _ in 0..4 {
        assert!(ask(&mut limits, HERE, "u", "p", Outcome::Unanswered, 0));
    }
    assert_eq!(admit(&mut limits, HERE, "u", "p", 1), Admission::Reject(Rejection::Unanswered));
    assert!(ask(&mut limits, THERE, "u", "p", Outcome::Unanswered, 0));
    assert!(ask(&mut limits, THERE, "u", "p", Outcome::Right, 1));
    assert!(!ask(&mut limits, HERE, "u", "p", Outcome::Right, 1), "this address has not logged in");
    let there = at(THERE);
    let account = limits.password(there, "u", "p", false).account;
    assert!(!limits.accounts.contains_key(&account), "the lost reply was the same one");
    // A client that has logged in with the same password does not wait for minutes after CouchDB
    // was silent; one at a time.
    for _ in 0..20 {
        assert!(ask(&mut limits, THERE, "u", "p", Outcome::Unanswered, 2));
    }
    let first = admit(&mut limits, THERE, "u", "p", 3);
    assert!(matches!(admit(&mut limits, THERE, "u", "p", 3), Admission::Wait(_)));
    assert!(finish(&mut limits, first, Outcome::Right, 3));
    assert_eq!(drain(&mut limits, 3).0.len(), 1);
}

#[test]
fn logins_that_couchdb_did_not_receive_do_not_count() {
    let mut limits = Limits::new(100);
    for _ in 0..100 {
        assert!(ask(&mut limits, HERE, "u", "p", Outcome::NotAsked, 0));
    }
    assert_empty(&mut limits, 0);
}

#[test]
fn an_address_that_tries_many_names_is_limited_and_served_within_a_minute() {
    let mut limits = Limits::new(20_000);
    let admitted: Vec<_> = (0..1_000).map(|n| admit(&mut limits, "2001:db8::1", &format!("n{n}"), "x", 0)).collect();
    let (mut under_way, mut count, mut rejections) = (asked(&admitted), 0, 0);
    assert_eq!(under_way.len(), 30);
    while let Some(key) = under_way.pop() {
        count += 1;
        limits.finish(key, Outcome::Wrong, 1);
        let (keys, rejected) = drain(&mut limits, 1);
        under_way.extend(keys);
        rejections += rejected.len();
    }
    assert_eq!((count, rejections, limits.waiting()), (30, 970, 0));
    let now = 2;
    let Admission::Reject(Rejection::Address(wait)) = admit(&mut limits, "2001:db8::2", "v", "p", now) else {
        panic!("both addresses are in one network")
    };
    assert!(wait <= 2_000);
    assert!(ask(&mut limits, "2001:db8:0:1::1", "v", "p", Outcome::Right, now));
    assert!(ask(&mut limits, "2001:db8::2", "v", "p", Outcome::Right, now + wait));
    assert_empty(&mut limits, WINDOW + 2);
}

#[test]
fn a_crowd_behind_one_address_logs_in() {
    let mut limits = Limits::new(20_000);
    let admitted: Vec<_> = (0..1_000).map(|n| admit(&mut limits, HERE, &format!("n{n}"), "p", 0)).collect();
    let (mut under_way, mut count) = (asked(&admitted), 0);
    while let Some(key) = under_way.pop() {
        count += 1;
        limits.finish(key, Outcome::Right, 1);
        under_way.extend(drain(&mut limits, 1).0);
        assert!(under_way.len() <= 30);
    }
    assert_eq!(count, 1_000);
    assert_empty(&mut limits, 1);
}

/// Failures of others at the same address, or in the same site, do not lock out clients that logged
/// in before.
#[test]
fn failures_of_other_names_do_not_lock_out_known_clients() {
    let mut limits = Limits::new(100);
    assert!(ask(&mut limits, HERE, "u", "p", Outcome::Right, 0));
    let tried = (0..40).filter(|n| ask(&mut limits, HERE, &format!("n{n}"), "x", Outcome::Wrong, 1)).count();
    assert_eq!(tried, 30);
    assert!(!ask(&mut limits, HERE, "v", "p", Outcome::Right, 1));
    assert!(ask(&mut limits, HERE, "u", "p", Outcome::Right, 1));
    let tried = (0..10).filter(|_| ask(&mut limits, HERE, "u", "x", Outcome::Wrong, 1)).count();
    assert_eq!(tried, 3);
}

#[test]
fn a_site_is_limited_and_its_known_addresses_are_served() {
    let mut limits = Limits::new(20_000);
    assert!(ask(&mut limits, "2001:db8:0:ffff::1", "u", "p", Outcome::Right, 0));
    let address = |n: u32| format!("2001:db8:0:{n:x}::1");
    let tried = (0..256).filter(|n| ask(&mut limits, &address(*n), "u", "x", Outcome::Wrong, 0)).count();
    assert_eq!(tried, 256);
    assert!(ask(&mut limits, "2001:db8:0:fffe::1", "u", "p", Outcome::Right, 0), "it is another address");
    let tried = (1_000..9_000).filter(|n| ask(&mut limits, &address(*n), "u", "x", Outcome::Wrong, 0)).count();
    assert_eq!(tried, 600 - 256);
    assert!(ask(&mut limits, "2001:db8:0:ffff::1", "u", "p", Outcome::Right, 0), "it has logged in before");
    assert!(ask(&mut limits, "2001:db8:1::1", "u", "p", Outcome::Right, 0), "it is another site");
    assert!(ask(&mut limits, "2001:db8:0:fffd::1", "u", "p", Outcome::Right, 100), "within a minute");
}

/// All clients have the same address for CouchDB.
#[test]
fn known_clients_log_in_where_couchdb_locks_names() {
    let mut limits = Limits::new(100);
    let by_name = |limits: &mut Limits, address: &str, password: &str, outcome, now| {
        let admission = admit_as(limits, address, true, "u", password, now);
        finish(limits, admission, outcome, now)
    };
    assert!(by_name(&mut limits, HERE, "p", Outcome::Right, 0));
    let tried = (0..200).filter(|n| by_name(&mut limits, &format!("10.0.0.{n}"), "x", Outcome::Wrong, 1)).count();
    assert_eq!(tried, 2, "some are reserved");
    let rejected = admit_as(&mut limits, THERE, true, "u", "y", 1);
    assert!(matches!(rejected, Admission::Reject(Rejection::Name(_))), "{rejected:?}");
    assert!(by_name(&mut limits, HERE, "p", Outcome::Right, 2));
    assert!(by_name(&mut limits, THERE, "p", Outcome::Right, 2), "no other client knows it");
    assert!(by_name(&mut limits, HERE, "mistyped", Outcome::Wrong, 3));
    assert!(!by_name(&mut limits, HERE, "mistyped again", Outcome::Wrong, 3));
    assert!(by_name(&mut limits, HERE, "p", Outcome::Right, 3));
    let unknown = (0..10).filter(|n| {
        let admission = admit_as(&mut limits, &format!("10.0.1.{n}"), true, "v", "x", 4);
        finish(&mut limits, admission, Outcome::Wrong, 4)
    });
    assert_eq!(unknown.count(), 4);
}

/// Otherwise the hash of the right password would help to guess it.
#[test]
fn comparing_passwords_is_limited_too() {
    let mut limits = Limits::new(100);
    for (address, password, outcome) in
        [(HERE, "p", Outcome::Right), (THERE, "x", Outcome::Wrong), (THERE, "x", Outcome::Wrong)]
    {
        let admission = admit_as(&mut limits, address, true, "u", password, 0);
        assert!(finish(&mut limits, admission, outcome, 0));
    }
    let guess = |limits: &mut Limits, n: u32| admit_as(limits, "10.0.0.1", true, "u", &format!("x{n}"), 1);
    (0..100).for_each(|n| assert!(matches!(guess(&mut limits, n), Admission::Reject(_))));
    let right = admit_as(&mut limits, "10.0.0.1", true, "u", "p", 1);
    assert!(matches!(right, Admission::Reject(_)), "a client that guesses so often learns nothing");
    assert!(matches!(admit_as(&mut limits, "10.0.0.2", true, "u", "p", 1), Admission::Ask(_)));
}

#[test]
fn cookies_have_a_limit_of_their_own() {
    let mut limits = Limits::new(20_000);
    let cookie = |limits: &mut Limits, now| limits.admit(at(HERE), Kind::Cookie, now, || 0, now);
    let forged: Vec<_> = (0..2_000).map(|_| cookie(&mut limits, 0)).collect();
    assert_eq!(asked(&forged).len(), 500);
    for key in asked(&forged) {
        limits.finish(key, Outcome::Wrong, 1);
    }
    assert_eq!(drain(&mut limits, 1).1.len(), 1_500);
    assert!(matches!(cookie(&mut limits, 1), Admission::Reject(Rejection::Address(wait)) if wait <= 50));
    assert!(ask(&mut limits, HERE, "u", "p", Outcome::Right, 1));
    assert!(matches!(cookie(&mut limits, 60_000), Admission::Ask(_)));
}

#[test]
fn a_password_that_the_caller_compares_counts_for_the_address() {
    let mut limits = Limits::new(100);
    for _ in 0..30 {
        assert_eq!(limits.count_compared(at(HERE), true, 0), Ok(()));
        assert_eq!(limits.count_compared(at(HERE), false, 0), Ok(()));
    }
    assert!(limits.count_compared(at(HERE), true, 0).is_err_and(|wait| wait <= 2_000));
    assert!(!ask(&mut limits, HERE, "v", "p", Outcome::Right, 0));
    assert_eq!(limits.count_compared(at(THERE), true, 0), Ok(()));
    assert_eq!(limits.count_compared(at(HERE), true, 2_000), Ok(()));
}

#[test]
fn waiting_is_bounded_in_number_and_in_time() {
    let mut limits = Limits::new(100);
    let admitted: Vec<_> = (0..1_000).map(|_| admit(&mut limits, HERE, "u", "x", 0)).collect();
    let waits = admitted.iter().filter(|one| matches!(one, Admission::Wait(_))).count();
    assert!(waits <= 52 && admitted.last() == Some(&Admission::Reject(Rejection::Overloaded)), "{waits}");
    let others: Vec<_> = (0..5).map(|_| admit(&mut limits, THERE, "u", "x", 0)).collect();
    assert!(matches!(others[4], Admission::Wait(_)), "an address leaves room");
    assert_eq!(limits.poll_timeout(), Some(LONGEST_WAIT));
    let (keys, rejections) = drain(&mut limits, LONGEST_WAIT);
    assert_eq!((keys.len(), rejections.len()), (0, waits + 2));
    asked(&admitted).into_iter().chain(asked(&others)).for_each(|key| limits.finish(key, Outcome::NotAsked, 2));
    assert_eq!(drain(&mut limits, LONGEST_WAIT), (Vec::new(), Vec::new()));
    assert_eq!(limits.poll_timeout(), None);
    assert_empty(&mut limits, LONGEST_WAIT);
}

#[test]
fn cancelled_logins_do_not_delay_others() {
    let mut limits = Limits::new(1_000);
    let asked_first = asked(&(0..3).map(|_| admit(&mut limits, HERE, "u", "x", 0)).collect::<Vec<_>>());
    for _ in 0..100 {
        let Admission::Wait(key) = admit(&mut limits, HERE, "u", "x", 0) else { panic!("three are in flight") };
        limits.cancel(key, 0);
    }
    assert!(matches!(admit(&mut limits, HERE, "u", "p", 0), Admission::Wait(_)));
    limits.finish(asked_first[0], Outcome::Wrong, 1);
    assert_eq!(drain(&mut limits, 1), (Vec::new(), Vec::new()), "two are in flight, and one has failed");
    limits.finish(asked_first[1], Outcome::NotAsked, 1);
    assert_eq!(drain(&mut limits, 1).0.len(), 1);
    assert_eq!(limits.waiting(), 0);
}

#[test]
fn tables_are_bounded() {
    let mut limits = Limits::new(100);
    for host in 0..50_000u32 {
        let address = std::net::Ipv6Addr::from_bits(u128::from(host) << 80).to_string();
        ask(&mut limits, &address, &host.to_string(), "x", Outcome::Wrong, u64::from(host));
    }
    assert!(limits.accounts.len() <= MAX_ACCOUNTS && limits.budgets.len() <= MAX_BUDGETS + 2);
    let mut now = 1_000_000;
    while !limits.account_ends.is_empty() || !limits.budget_ends.is_empty() {
        now += 1_000;
        limits.forget(now);
    }
    assert_empty(&mut limits, now);
}
