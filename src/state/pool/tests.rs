use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

fn submit(pool: &mut Pool<u32>, byte: u8, purpose: u32, now: Millis, actions: &mut Vec<PoolAction<u32>>) -> Key {
    let submission = Submission { owner: Owner::Server, request: vec![byte], purpose, since: now, repeatable: true };
    pool.submit(submission, now, actions).unwrap()
}

fn done(actions: &mut Vec<PoolAction<u32>>) -> Vec<(u32, Option<u16>)> {
    actions
        .drain(..)
        .filter_map(|action| match action {
            PoolAction::Done(purpose, answer) => Some((purpose, answer.ok().map(|a| a.status))),
            _ => None,
        })
        .collect()
}

#[test]
fn queues_in_order_over_few_connections() {
    let (mut pool, mut actions) = (Pool::new(2, MAX_BODY, MAX_WAITING), Vec::new());
    for purpose in 0..4u32 {
        submit(&mut pool, b'a', purpose, 0, &mut actions);
    }
    assert_eq!(actions, [PoolAction::Dial(0), PoolAction::Dial(1)]);
    actions.clear();
    pool.handle_connected(0, 1, &mut actions);
    pool.handle_connected(1, 1, &mut actions);
    assert_eq!(actions, [PoolAction::Send(0, vec![b'a']), PoolAction::Send(1, vec![b'a'])]);
    pool.handle_bytes(1, OK, 2, &mut actions);
    pool.handle_bytes(0, OK, 2, &mut actions);
    assert_eq!(done(&mut actions), [(1, Some(200)), (0, Some(200))]);
    pool.handle_bytes(0, OK, 2, &mut actions);
    pool.handle_bytes(1, OK, 2, &mut actions);
    assert_eq!(done(&mut actions).len(), 2);
    assert!(pool.is_empty());
    assert_eq!(pool.poll_timeout(), Some(2 + IDLE_TIMEOUT), "only idle connections are left to close");
}

#[test]
fn a_request_is_sent_once_more_when_its_connection_ends() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    submit(&mut pool, b'a', 7, 0, &mut actions);
    for attempt in 0..2 {
        pool.handle_connected(0, 1, &mut actions);
        assert!(actions.contains(&PoolAction::Send(0, vec![b'a'])), "{attempt}");
        actions.clear();
        pool.handle_lost(0, 1, &mut actions);
    }
    assert_eq!(done(&mut actions), [(7, None)]);
}

#[test]
fn stale_idle_connections_do_not_count_as_attempts() {
    let (mut pool, mut actions) = (Pool::new(3, MAX_BODY, MAX_WAITING), Vec::new());
    for purpose in 0..3u32 {
        submit(&mut pool, b'a', purpose, 0, &mut actions);
    }
    for number in 0..3 {
        pool.handle_connected(number, 0, &mut actions);
    }
    for number in 0..3 {
        pool.handle_bytes(number, OK, 1, &mut actions);
    }
    assert_eq!(done(&mut actions).len(), 3);
    // A firewall has forgotten all three: each fails when it is written to.
    submit(&mut pool, b'b', 7, 100, &mut actions);
    for number in 0..3 {
        assert!(actions.contains(&PoolAction::Send(number, vec![b'b'])), "{number}: {actions:?}");
        pool.handle_lost(number, 100, &mut actions);
    }
    let dialed = actions.iter().find_map(|action| match action {
        PoolAction::Dial(number) => Some(*number),
        _ => None,
    });
    pool.handle_connected(dialed.expect("no connection is left, so one is dialed"), 101, &mut actions);
    pool.handle_bytes(dialed.unwrap(), OK, 102, &mut actions);
    assert_eq!(done(&mut actions), [(7, Some(200))]);
}

/// Creates a pool whose connections have all carried a reply and are idle from time 1 on.
fn idle_pool(size: usize) -> (Pool<u32>, Vec<PoolAction<u32>>) {
    let (mut pool, mut actions) = (Pool::new(size, MAX_BODY, MAX_WAITING), Vec::new());
    for purpose in 0..u32::try_from(size).unwrap() {
        submit(&mut pool, b'a', purpose, 0, &mut actions);
    }
    (0..size).for_each(|number| pool.handle_connected(number, 0, &mut actions));
    (0..size).for_each(|number| pool.handle_bytes(number, OK, 1, &mut actions));
    actions.clear();
    (pool, actions)
}

#[test]
fn dead_idle_connections_delay_a_request_by_one_second_once() {
    let (mut pool, mut actions) = idle_pool(8);
    submit(&mut pool, b'b', 7, 100, &mut actions);
    assert_eq!(actions, [PoolAction::Send(0, vec![b'b'])]);
    actions.clear();
    assert_eq!(pool.poll_timeout(), Some(100 + SUSPECT_AFTER));
    pool.handle_timeout(100 + SUSPECT_AFTER, &mut actions);
    let closed = actions.iter().filter(|action| matches!(action, PoolAction::Close(_))).count();
    assert_eq!((closed, actions.last()), (8, Some(&PoolAction::Dial(0))), "all are closed: {actions:?}");
    actions.clear();
    pool.handle_connected(0, 1_101, &mut actions);
    assert_eq!(actions, [PoolAction::Send(0, vec![b'b'])]);
    assert_eq!(pool.poll_timeout(), Some(4_600), "on a new connection CouchDB has the whole time");
    pool.handle_bytes(0, OK, 1_110, &mut actions);
    assert_eq!(done(&mut actions), [(7, Some(200))]);
}

#[test]
fn eight_requests_on_eight_dead_connections_wait_together() {
    let (mut pool, mut actions) = idle_pool(8);
    for purpose in 0..8 {
        submit(&mut pool, b'b', purpose, 100, &mut actions);
    }
    actions.clear();
    pool.handle_timeout(1_100, &mut actions);
    assert_eq!(actions.iter().filter(|action| matches!(action, PoolAction::Dial(_))).count(), 8);
    (0..8).for_each(|number| pool.handle_connected(number, 1_101, &mut actions));
    (0..8).for_each(|number| pool.handle_bytes(number, OK, 1_102, &mut actions));
    assert_eq!(done(&mut actions).len(), 8);
}

#[test]
fn connections_that_carried_no_request_can_be_dead_too() {
    let (mut pool, mut actions) = (Pool::new(2, MAX_BODY, MAX_WAITING), Vec::new());
    submit(&mut pool, b'a', 1, 0, &mut actions);
    submit(&mut pool, b'a', 2, 0, &mut actions);
    pool.handle_connected(0, 0, &mut actions);
    pool.handle_bytes(0, OK, 1, &mut actions);
    pool.handle_bytes(0, OK, 2, &mut actions);
    // It was dialed for a request that went over the other connection.
    pool.handle_connected(1, 3, &mut actions);
    actions.clear();
    submit(&mut pool, b'b', 3, 100, &mut actions);
    submit(&mut pool, b'b', 4, 100, &mut actions);
    assert_eq!(actions, [PoolAction::Send(0, vec![b'b']), PoolAction::Send(1, vec![b'b'])]);
    actions.clear();
    pool.handle_timeout(100 + SUSPECT_AFTER, &mut actions);
    assert!(actions.contains(&PoolAction::Close(0)) && actions.contains(&PoolAction::Close(1)), "{actions:?}");
}

#[test]
fn a_slow_couchdb_is_not_a_dead_connection() {
    let (mut pool, mut actions) = idle_pool(1);
    // The reply takes 1.5 s on a new connection too, so CouchDB is slow.
    submit(&mut pool, b'b', 1, 100, &mut actions);
    pool.handle_timeout(1_100, &mut actions);
    pool.handle_connected(0, 1_100, &mut actions);
    pool.handle_bytes(0, OK, 2_600, &mut actions);
    assert_eq!(done(&mut actions), [(1, Some(200))]);
    submit(&mut pool, b'c', 2, 3_000, &mut actions);
    assert_eq!(pool.poll_timeout(), Some(6_000));
    // The first byte shows that the connection works.
    pool.handle_bytes(0, &OK[..1], 5_000, &mut actions);
    assert_eq!(pool.poll_timeout(), Some(7_500));
    pool.handle_bytes(0, &OK[1..], 5_100, &mut actions);
    assert_eq!(done(&mut actions), [(2, Some(200))]);
    // Without a pause between requests, the connection has just proved that it works.
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    for purpose in 0..2u32 {
        submit(&mut pool, b'a', purpose, 0, &mut actions);
    }
    pool.handle_connected(0, 0, &mut actions);
    pool.handle_bytes(0, OK, 10, &mut actions);
    assert_eq!(pool.poll_timeout(), Some(4_510));
}

#[test]
fn idle_connections_are_closed() {
    let (mut pool, mut actions) = idle_pool(2);
    assert_eq!(pool.poll_timeout(), Some(1 + IDLE_TIMEOUT));
    submit(&mut pool, b'b', 7, 100, &mut actions);
    pool.handle_bytes(0, OK, 101, &mut actions);
    actions.clear();
    pool.handle_timeout(1 + IDLE_TIMEOUT, &mut actions);
    assert_eq!(actions, [PoolAction::Close(1)]);
    actions.clear();
    pool.handle_timeout(101 + IDLE_TIMEOUT, &mut actions);
    assert_eq!((&actions[..], pool.poll_timeout()), (&[PoolAction::Close(0)][..], None));
}

#[test]
fn retired_connections_carry_no_further_request() {
    let (mut pool, mut actions) = idle_pool(2);
    submit(&mut pool, b'b', 7, 100, &mut actions);
    actions.clear();
    pool.retire_connections(&mut actions);
    assert_eq!(actions, [PoolAction::Close(1)]);
    actions.clear();
    submit(&mut pool, b'c', 8, 101, &mut actions);
    pool.handle_bytes(0, OK, 102, &mut actions);
    assert!(actions.contains(&PoolAction::Close(0)) && !actions.contains(&PoolAction::Send(0, vec![b'c'])));
}

#[test]
fn requests_fail_within_five_seconds_when_couchdb_is_away_or_silent() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    submit(&mut pool, b'a', 1, 1000, &mut actions);
    submit(&mut pool, b'b', 2, 1000, &mut actions);
    pool.handle_lost(0, 1001, &mut actions);
    let mut now = 1001;
    while !pool.is_empty() {
        now = pool.poll_timeout().expect("something is due").max(now);
        assert!(now < 6000, "{now}");
        pool.handle_timeout(now, &mut actions);
        if actions.contains(&PoolAction::Dial(0)) {
            actions.retain(|action| matches!(action, PoolAction::Done(..)));
            pool.handle_lost(0, now, &mut actions);
        }
    }
    assert_eq!(done(&mut actions), [(1, None), (2, None)]);
    // CouchDB accepts the connection and never answers.
    submit(&mut pool, b'a', 3, 10_000, &mut actions);
    pool.handle_connected(0, 10_000, &mut actions);
    assert_eq!(pool.poll_timeout(), Some(14_500));
    pool.handle_timeout(14_500, &mut actions);
    assert_eq!(done(&mut actions), [(3, None)]);
}

#[test]
fn waiting_requests_fail_as_soon_as_sent_ones_when_couchdb_is_silent() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    submit(&mut pool, b'a', 1, 0, &mut actions);
    pool.handle_connected(0, 0, &mut actions);
    submit(&mut pool, b'b', 2, 10, &mut actions);
    // The first request fails; the second is sent just before its own deadline.
    assert_eq!(pool.poll_timeout(), Some(4500));
    pool.handle_timeout(4500, &mut actions);
    pool.handle_connected(0, 4501, &mut actions);
    assert!(actions.contains(&PoolAction::Send(0, vec![b'b'])));
    assert_eq!(pool.poll_timeout(), Some(4510));
    pool.handle_timeout(4510, &mut actions);
    assert_eq!(done(&mut actions), [(1, None), (2, None)]);
}

#[test]
fn requests_in_a_long_queue_do_not_fail_while_replies_come() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    for purpose in 0..20u32 {
        submit(&mut pool, b'a', purpose, 0, &mut actions);
    }
    pool.handle_connected(0, 0, &mut actions);
    for second in 1..=12 {
        pool.handle_timeout(second * 1000, &mut actions);
        pool.handle_bytes(0, OK, second * 1000, &mut actions);
    }
    let over = done(&mut actions);
    assert_eq!(over.len(), 12);
    assert!(over.iter().all(|(_, status)| *status == Some(200)), "{over:?}");
}

#[test]
fn cancelled_requests_are_neither_sent_nor_answered() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    let first = submit(&mut pool, b'a', 1, 0, &mut actions);
    let second = submit(&mut pool, b'b', 2, 0, &mut actions);
    submit(&mut pool, b'c', 3, 0, &mut actions);
    pool.handle_connected(0, 0, &mut actions);
    pool.cancel(first);
    pool.cancel(second);
    actions.clear();
    pool.handle_bytes(0, OK, 1, &mut actions);
    assert_eq!(actions, [PoolAction::Send(0, vec![b'c'])]);
    pool.handle_bytes(0, &OK[..10], 1, &mut actions);
    pool.handle_bytes(0, &OK[10..], 1, &mut actions);
    assert_eq!(done(&mut actions), [(3, Some(200))]);
}

#[test]
fn a_reply_that_is_too_long_ends_the_connection() {
    let (mut pool, mut actions) = (Pool::new(1, 4, MAX_WAITING), Vec::new());
    for (purpose, length, too_long) in [(1_u32, 4, false), (2, 5, true)] {
        submit(&mut pool, b'a', purpose, 0, &mut actions);
        if purpose == 1 {
            pool.handle_connected(0, 0, &mut actions);
        }
        actions.clear();
        let answer = format!("HTTP/1.1 404 No\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length));
        pool.handle_bytes(0, answer.as_bytes(), 1, &mut actions);
        assert_eq!(actions.contains(&PoolAction::Close(0)), too_long);
        let body = if too_long { Vec::new() } else { vec![b'x'; length] };
        let answer = Answer { status: 404, auth_cookie: None, date: None, body, is_too_long: too_long };
        assert!(actions.contains(&PoolAction::Done(purpose, Ok(answer))), "{actions:?}");
    }
}

#[test]
fn malformed_and_unexpected_replies_end_the_connection() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    submit(&mut pool, b'a', 1, 0, &mut actions);
    pool.handle_connected(0, 0, &mut actions);
    pool.handle_bytes(0, b"SSH-2.0\r\n", 1, &mut actions);
    assert!(actions.contains(&PoolAction::Close(0)));
    assert_eq!(done(&mut actions), [(1, None)]);
    submit(&mut pool, b'a', 2, 5, &mut actions);
    pool.handle_connected(0, 5, &mut actions);
    pool.handle_bytes(0, &[OK, OK].concat(), 6, &mut actions);
    assert!(actions.contains(&PoolAction::Close(0)));
    assert_eq!(done(&mut actions), [(2, Some(200))]);
}

fn queued(owner: Owner, purpose: u32, since: Millis, repeatable: bool) -> Submission<u32> {
    Submission { owner, request: vec![b'a'], purpose, since, repeatable }
}

fn at(address: &str) -> Owner {
    Owner::at(address.parse().unwrap())
}

#[test]
fn owners_are_served_in_turn() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    for purpose in 0..4_000 {
        pool.submit(queued(at("2001:db8::1"), purpose, 0, true), 0, &mut actions).unwrap();
    }
    pool.submit(queued(at("2001:db8:0:1::"), 9_000, 1, true), 1, &mut actions).unwrap();
    pool.submit(queued(at("2001:db8::2"), 9_001, 1, true), 1, &mut actions).unwrap();
    pool.handle_connected(0, 1, &mut actions);
    for now in 2..5 {
        pool.handle_bytes(0, OK, now, &mut actions);
    }
    let served: Vec<_> = done(&mut actions).into_iter().map(|(purpose, _)| purpose).collect();
    assert_eq!(served, [0, 9_000, 1]);
}

#[test]
fn an_owner_leaves_room_for_others_and_cancelled_requests_are_not_counted() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, 100), Vec::new());
    let mut submit =
        |pool: &mut Pool<u32>, address: &str| pool.submit(queued(at(address), 0, 0, true), 0, &mut actions);
    let keys: Vec<_> = std::iter::from_fn(|| submit(&mut pool, "10.0.0.1").ok()).collect();
    assert_eq!(keys.len(), 51);
    let others = (0..60).filter(|n| submit(&mut pool, &format!("10.0.1.{n}")).is_ok()).count();
    assert_eq!(others, 49);
    for key in &keys {
        pool.cancel(*key);
    }
    assert_eq!((pool.oldest.len(), pool.counts.len()), (49, 49));
    for _ in 0..10_000 {
        let key = submit(&mut pool, "10.0.0.1").expect("there is room");
        pool.cancel(key);
    }
    assert!(pool.waiting.len() < 3 * MAX_CANCELLED, "{}", pool.waiting.len());
    pool.reject_waiting(&mut actions);
    assert_eq!(done(&mut actions).len(), 49);
    assert!(pool.is_empty() && pool.counts.is_empty() && pool.waiting.is_empty());
}

#[test]
fn deadlines_count_from_the_start_of_the_wait_in_any_order() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    pool.submit(queued(at("10.0.0.1"), 1, 1_000, true), 1_000, &mut actions).unwrap();
    pool.submit(queued(at("10.0.0.1"), 2, 3_000, true), 3_000, &mut actions).unwrap();
    pool.submit(queued(at("10.0.0.2"), 3, 500, true), 3_000, &mut actions).unwrap();
    pool.handle_lost(0, 3_000, &mut actions);
    pool.handle_timeout(5_500, &mut actions);
    assert_eq!(done(&mut actions), [(3, None), (1, None)]);
    let late = pool.submit(queued(at("10.0.0.2"), 4, 900, true), 5_500, &mut actions);
    assert_eq!(late, Err(Rejection::Late));
    pool.handle_timeout(7_500, &mut actions);
    assert_eq!(done(&mut actions), [(2, None)]);
    assert!(pool.is_empty() && pool.oldest.is_empty() && pool.counts.is_empty());
}

#[test]
fn requests_that_are_not_repeatable_are_sent_once() {
    let (mut pool, mut actions) = (Pool::new(1, MAX_BODY, MAX_WAITING), Vec::new());
    for (purpose, used) in [(1, false), (2, true)] {
        pool.submit(queued(Owner::Server, purpose, 0, false), 0, &mut actions).unwrap();
        pool.handle_connected(0, 0, &mut actions);
        if used {
            pool.handle_bytes(0, OK, 0, &mut actions);
            pool.submit(queued(Owner::Server, purpose, 0, false), 0, &mut actions).unwrap();
        }
        actions.clear();
        pool.handle_lost(0, 1, &mut actions);
        assert_eq!(actions, [PoolAction::Done(purpose, Err(NoAnswer::Lost { used }))]);
    }
}
