use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Subscribes to a database that may not be kept yet.
fn subscribe(s: &mut Subscriptions, session: SessionIndex, name: &str) -> Result<bool, TooManySubscriptions> {
    let database = s.hold(name);
    let subscribed = s.subscribe(session, database);
    s.release(database);
    subscribed
}

fn unsubscribe(s: &mut Subscriptions, session: SessionIndex, name: &str) -> bool {
    s.find(name).is_some_and(|database| s.unsubscribe(session, database))
}

fn notified(subscriptions: &mut Subscriptions, session: SessionIndex) -> Vec<(String, ChangeKind)> {
    std::iter::from_fn(|| {
        let (database, kind) = subscriptions.take_dirty(session)?;
        Some((subscriptions.name(database).to_owned(), kind))
    })
    .collect()
}

fn change(subscriptions: &mut Subscriptions, name: &str) -> Vec<SessionIndex> {
    let mut newly_dirty = Vec::new();
    if let Some(database) = subscriptions.find(name) {
        subscriptions.mark(database, ChangeKind::Updated, &mut newly_dirty);
    }
    newly_dirty
}

#[test]
fn each_change_is_pending_once_in_order() {
    let mut s = Subscriptions::default();
    for name in ["a", "b", "__proto__"] {
        assert_eq!(subscribe(&mut s, 3, name), Ok(true));
        assert_eq!(subscribe(&mut s, 3, name), Ok(false));
    }
    assert_eq!(change(&mut s, "__proto__"), [3]);
    assert!(change(&mut s, "a").is_empty(), "it is dirty already");
    assert!(change(&mut s, "__proto__").is_empty());
    assert!(change(&mut s, "unknown").is_empty());
    let names: Vec<_> = notified(&mut s, 3).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["__proto__", "a"]);
    assert!(!s.is_dirty(3));
    assert_eq!(change(&mut s, "b"), [3]);
    assert!(unsubscribe(&mut s, 3, "b"));
    assert!(!s.is_dirty(3), "its pending change is dropped");
    assert!(!unsubscribe(&mut s, 3, "b"));
    s.remove_session(3);
    assert_eq!((s.databases(), s.total(), s.count(3), s.watched(), s.held()), (0, 0, 0, 0, 0));
}

#[test]
fn subscriptions_of_a_session_are_limited() {
    let mut s = Subscriptions::default();
    for i in 0..Limits::default().subscriptions {
        assert_eq!(subscribe(&mut s, 0, &i.to_string()), Ok(true));
    }
    assert_eq!(subscribe(&mut s, 0, "one more"), Err(TooManySubscriptions));
    assert_eq!(subscribe(&mut s, 0, "7"), Ok(false));
    assert_eq!(subscribe(&mut s, 1, "7"), Ok(true));
}

/// Compares random operations with a naive model of maps and sets.
#[test]
fn agrees_with_a_naive_model() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        u32::try_from(seed % below).unwrap()
    };
    let mut s = Subscriptions::default();
    let mut model: BTreeMap<u32, BTreeMap<String, bool>> = BTreeMap::new();
    for step in 0..60_000 {
        let (session, name) = (random(6), format!("db{}", random(80)));
        let its = model.entry(session).or_default();
        match random(100) {
            0..35 => assert_eq!(
                subscribe(&mut s, session, &name).unwrap(),
                its.insert(name.clone(), its.get(&name) == Some(&true)).is_none()
            ),
            35..55 => assert_eq!(unsubscribe(&mut s, session, &name), its.remove(&name).is_some()),
            55..90 => {
                change(&mut s, &name);
                for dirty in model.values_mut().filter_map(|its| its.get_mut(&name)) {
                    *dirty = true;
                }
            }
            90..98 => {
                let names: BTreeSet<_> = notified(&mut s, session).into_iter().map(|(name, _)| name).collect();
                let expected: BTreeSet<_> =
                    its.iter().filter(|(_, dirty)| **dirty).map(|(name, _)| name.clone()).collect();
                assert_eq!(names, expected, "step {step}");
                for dirty in its.values_mut() {
                    *dirty = false;
                }
            }
            98 => {
                let last = s.last_of_session(session, 1).next();
                let last = last.map(|(database, is_notified)| (s.name(database).to_owned(), is_notified));
                let dropped = s.drop_last(session);
                assert_eq!((dropped.is_some(), last.is_some()), (!its.is_empty(), !its.is_empty()));
                if let Some((name, is_notified)) = last {
                    assert_eq!(its.remove(&name), Some(!is_notified), "step {step}");
                }
            }
            _ => {
                s.remove_session(session);
                its.clear();
            }
        }
        assert_eq!(s.total(), model.values().map(BTreeMap::len).sum::<usize>());
        assert_eq!(s.watched(), model.values().flat_map(BTreeMap::keys).collect::<BTreeSet<_>>().len());
    }
    for session in 0..6 {
        s.remove_session(session);
    }
    assert_eq!((s.databases(), s.total(), s.watched(), s.held()), (0, 0, 0, 0));
}

#[test]
fn a_database_lingers_once_even_if_it_is_held() {
    let mut s = Subscriptions { keeps_orphans: true, ..Subscriptions::default() };
    let database = s.hold("a");
    for _ in 0..3 {
        s.subscribe(0, database).expect("within the limit");
        s.remove_session(0);
    }
    assert_eq!((s.take_orphans(), s.held()), (vec![database], 2));
    s.release(database);
    s.release_orphan(database);
    assert_eq!((s.databases(), s.held()), (0, 0));
}
