use super::*;

const DATE: u64 = 1_795_000_000;

/// A CouchDB of several nodes, and a machine that asks it.
struct Rig {
    restarts: Restarts,
    now: Millis,
    /// Name, start in seconds, and whether the node can be asked.
    nodes: Vec<(&'static str, u64, bool)>,
    clock_error: u64,
    membership: u16,
    by_name: u16,
    system: u16,
    asked: usize,
    /// Number of the node that answers for itself.
    own: usize,
}

impl Rig {
    fn new(starts: &[u64]) -> Self {
        let names = ["a@x", "b@x", "c@x"];
        let nodes = names.into_iter().zip(starts).map(|(name, start)| (name, *start, true)).collect();
        Self {
            restarts: Restarts::new(Jitter::new(3)),
            now: 0,
            nodes,
            clock_error: 0,
            membership: 200,
            by_name: 200,
            system: 200,
            asked: 0,
            own: 0,
        }
    }

    fn reply(&self, request: &Request) -> (u16, String) {
        match request {
            Request::Membership => {
                let names = |up: bool| {
                    let nodes = self.nodes.iter().filter(|(.., is_up)| *is_up || !up);
                    nodes.map(|(name, ..)| format!("{name:?}")).collect::<Vec<_>>().join(",")
                };
                let body = format!(r#"{{"all_nodes":[{}],"cluster_nodes":[{}]}}"#, names(true), names(false));
                (self.membership, body)
            }
            Request::Name => (self.system, format!(r#"{{"name":{:?}}}"#, self.nodes[self.own].0)),
            Request::System(node) => {
                let found = match node {
                    Some(node) => self.nodes.iter().find(|(name, _, is_up)| **name == **node && *is_up),
                    None => self.nodes.get(self.own),
                };
                let status = if node.is_some() { self.by_name } else { self.system };
                match found {
                    Some((_, start, _)) => {
                        let uptime = DATE + self.now / 1_000 - (DATE - 10_000 + start);
                        (status, format!(r#"{{"uptime":{uptime}}}"#))
                    }
                    None => (404, "{}".to_owned()),
                }
            }
        }
    }

    /// Runs one reading after a while.
    fn read(&mut self) -> Option<Finding> {
        self.now += 20_000;
        self.restarts.handle_opened(self.now);
        self.go_on()
    }

    fn go_on(&mut self) -> Option<Finding> {
        let mut finding = None;
        while self.step(&mut finding) {}
        finding
    }

    /// Runs a reading, and the following one if it is doubtful.
    fn read_until_settled(&mut self) -> Option<Finding> {
        self.read().or_else(|| {
            self.now += READ_PAUSE;
            self.go_on()
        })
    }

    /// Runs one request. Returns false if none is due.
    fn step(&mut self, finding: &mut Option<Finding>) -> bool {
        let Some(request) = self.restarts.next_request(self.now) else { return false };
        self.asked += 1;
        let (status, body) = self.reply(&request);
        let date = Some(DATE + self.now / 1_000 + self.clock_error);
        let reply = Reply { status, date, body: body.as_bytes() };
        assert_eq!(self.restarts.next_request(self.now), None, "one at a time");
        *finding = self.restarts.handle_reply(Some(reply), self.now);
        true
    }
}

#[test]
fn a_single_node_with_a_later_start_has_restarted() {
    let mut rig = Rig::new(&[100]);
    assert!(!rig.restarts.is_settled() && rig.restarts.starts().is_none());
    assert_eq!(rig.read(), Some(Finding::First));
    assert_eq!(rig.asked, 2);
    let starts = rig.restarts.starts().expect("known");
    assert!(starts.is_single && starts.earliest == starts.latest && !rig.restarts.is_cluster());
    for (start, finding) in
        [(100, Finding::Continuous), (102, Finding::Continuous), (105, Finding::Restarted), (105, Finding::Continuous)]
    {
        rig.nodes[0].1 = start;
        assert_eq!(rig.read(), Some(finding), "{start}");
    }
}

#[test]
fn a_restart_of_a_cluster_during_a_reading_is_detected() {
    for asked_before in 1..3 {
        let mut rig = Rig::new(&[100, 200, 300]);
        assert_eq!(rig.read(), Some(Finding::First));
        let starts = rig.restarts.starts();
        rig.now += 20_000;
        rig.restarts.handle_opened(rig.now);
        // The nodes, and the start times of some of them.
        for _ in 0..=asked_before {
            assert!(rig.step(&mut None));
        }
        rig.nodes.iter_mut().for_each(|(_, start, _)| *start += 900);
        assert_eq!(rig.go_on(), None, "some were up, and all may have restarted after them");
        assert_eq!(rig.restarts.starts(), starts, "the reading is not used");
        rig.now += READ_PAUSE;
        assert_eq!(rig.go_on(), Some(Finding::Restarted), "{asked_before} were asked before");
        assert_eq!(rig.read(), Some(Finding::Continuous));
    }
}

#[test]
fn a_restarted_node_that_was_asked_last_is_asked_first_next_time() {
    for number in 0..3 {
        let mut rig = Rig::new(&[100, 200, 300]);
        rig.read();
        // The nodes restart in turn: one of them is up at any time.
        for turn in 0..6 {
            rig.nodes[(number + turn) % 3].1 += 900;
            assert_eq!(rig.read_until_settled(), Some(Finding::Continuous), "{number} {turn}");
        }
        rig.nodes.iter_mut().for_each(|(_, start, _)| *start += 900);
        assert_eq!(rig.read(), Some(Finding::Restarted));
    }
}

#[test]
fn replies_from_before_the_feed_was_opened_are_not_used() {
    let mut rig = Rig::new(&[100]);
    assert_eq!(rig.read(), Some(Finding::First));
    rig.now += 20_000;
    rig.restarts.handle_opened(rig.now);
    assert!(rig.step(&mut None));
    assert_eq!(rig.restarts.next_request(rig.now), Some(Request::System(None)));
    rig.now += 2 * READ_PAUSE;
    rig.restarts.handle_opened(rig.now);
    let reply = Reply { status: 200, date: Some(DATE), body: br#"{"uptime":1}"# };
    assert_eq!(rig.restarts.handle_reply(Some(reply), rig.now), None, "the reply is from before");
    rig.nodes[0].1 += 900;
    assert_eq!(rig.go_on(), Some(Finding::Restarted));
}

#[test]
fn a_temporary_refusal_does_not_make_a_known_start_unknown() {
    let mut rig = Rig::new(&[100]);
    assert_eq!(rig.read(), Some(Finding::First));
    let starts = rig.restarts.starts();
    (rig.membership, rig.system) = (403, 403);
    for _ in 1..MAX_FAILURES {
        assert_eq!(rig.go_on(), None);
        assert_eq!(rig.restarts.starts(), starts);
        rig.now += 300_000;
    }
    (rig.membership, rig.system) = (200, 200);
    rig.nodes[0].1 += 900;
    assert_eq!(rig.go_on(), Some(Finding::Restarted), "it is compared with the known start");
}

#[test]
fn a_restart_before_the_first_reply_is_detected_by_the_uptime() {
    let mut rig = Rig { system: 503, ..Rig::new(&[100]) };
    assert_eq!(rig.read(), None);
    rig.system = 200;
    rig.now += 10_000;
    rig.nodes[0].1 = 10_000 + rig.now / 1_000 - 5;
    assert_eq!(rig.go_on(), Some(Finding::Restarted), "it has been up for 5 s, and the feed was followed for 10 s");
    assert_eq!(rig.read(), Some(Finding::Continuous));
}

#[test]
fn only_a_clock_that_is_set_forward_looks_like_a_restart() {
    let mut rig = Rig::new(&[100]);
    rig.read();
    rig.clock_error = 60;
    assert_eq!(rig.read(), Some(Finding::Restarted));
    let ahead = rig.restarts.starts().expect("known").latest;
    rig.clock_error = 0;
    assert_eq!(rig.read(), Some(Finding::Continuous));
    assert!(!rig.restarts.starts().expect("known").reach_back_to(ahead), "clients that come back are notified");
    // The uptime shows a restart while the clock is set back.
    rig.nodes[0].1 = 9_990;
    rig.clock_error = 0_u64.wrapping_sub(9_950);
    let date = DATE.wrapping_add(rig.clock_error) + rig.now / 1_000;
    rig.restarts.handle_opened(rig.now + READ_PAUSE);
    rig.now += READ_PAUSE;
    assert_eq!(rig.restarts.next_request(rig.now), Some(Request::Membership));
    let body = br#"{"all_nodes":["a@x"],"cluster_nodes":["a@x"]}"#;
    assert_eq!(rig.restarts.handle_reply(Some(Reply { status: 200, date: None, body }), rig.now), None);
    rig.restarts.next_request(rig.now);
    let reply = Reply { status: 200, date: Some(date), body: br#"{"uptime":3}"# };
    assert_eq!(rig.restarts.handle_reply(Some(reply), rig.now), Some(Finding::Restarted));
}

#[test]
fn a_cluster_has_lost_events_only_if_all_nodes_restarted() {
    let mut rig = Rig::new(&[100, 200, 300]);
    assert_eq!(rig.read(), Some(Finding::First));
    assert!(rig.restarts.is_cluster());
    let given = rig.restarts.starts().expect("known").latest;
    for (node, start) in [(0, 400), (1, 500), (2, 600), (0, 700)] {
        rig.nodes[node].1 = start;
        assert_eq!(rig.read_until_settled(), Some(Finding::Continuous), "the nodes restart in turn");
    }
    let reaches_back = |rig: &Rig, given| rig.restarts.starts().expect("known").reach_back_to(given);
    assert!(reaches_back(&rig, given), "one node was up at any time");
    let mut later = Rig::new(&[700, 500, 600]);
    later.read();
    assert!(!reaches_back(&later, given), "a later server does not know that");
    assert!(reaches_back(&later, rig.restarts.starts().expect("known").latest));
    rig.nodes[2].2 = false;
    rig.nodes[0].1 = 800;
    assert_eq!(rig.read_until_settled(), Some(Finding::Continuous), "one is down, one restarted, one stayed");
    rig.nodes[2].2 = true;
    assert_eq!(rig.read_until_settled(), Some(Finding::Continuous), "a node was cut off, and is back");
    let given = rig.restarts.starts().expect("known").latest;
    rig.nodes = vec![("a@x", 10_100, true), ("b@x", 10_101, true), ("c@x", 600, false)];
    assert_eq!(rig.read(), Some(Finding::Restarted), "all nodes that are up have restarted");
    assert!(!rig.restarts.starts().expect("known").reach_back_to(given));
    assert_eq!(rig.read_until_settled(), Some(Finding::Continuous));
}

#[test]
fn nodes_that_cannot_be_asked_by_name_are_read_one_at_a_time() {
    for (membership, by_name) in [(200, 404), (403, 200)] {
        let mut rig = Rig { membership, by_name, ..Rig::new(&[100, 200, 300]) };
        assert_eq!(rig.read(), Some(Finding::First));
        for own in [1, 2, 0] {
            rig.own = own;
            assert_eq!(rig.read(), Some(Finding::Continuous), "{own}");
        }
        rig.nodes[1].1 = 10_070;
        for own in [0, 1, 2] {
            rig.own = own;
            assert_eq!(rig.read(), Some(Finding::Continuous), "{own}");
        }
        rig.nodes[0].1 = 10_130;
        rig.nodes[2].1 = 10_131;
        let findings = [0, 2].map(|own| {
            rig.own = own;
            rig.read()
        });
        assert_eq!(findings, [Some(Finding::Continuous), Some(Finding::Restarted)]);
    }
}

#[test]
fn a_host_that_reports_no_start_is_rarely_asked() {
    let mut rig = Rig { membership: 404, system: 403, ..Rig::new(&[100]) };
    assert_eq!(rig.read(), Some(Finding::Unknown));
    assert_eq!((rig.asked, rig.restarts.is_settled(), rig.restarts.starts()), (2, true, None));
    assert!(!rig.restarts.suspect(rig.now) && !rig.restarts.take_suspicion());
    let next = rig.restarts.poll_timeout().expect("a retry is scheduled");
    assert!((rig.now + READ_EVERY / 2..=rig.now + READ_EVERY).contains(&next), "{next}");
}

#[test]
fn failed_readings_are_repeated_for_a_while() {
    let mut rig = Rig { system: 503, ..Rig::new(&[100]) };
    let tries = |rig: &mut Rig| {
        let mut finding = rig.read();
        let mut tries = 1;
        while finding.is_none() {
            rig.now = rig.restarts.poll_timeout().expect("a retry is scheduled");
            finding = rig.go_on();
            tries += 1;
        }
        (finding, tries)
    };
    assert_eq!(tries(&mut rig), (Some(Finding::Unknown), MAX_FIRST_FAILURES));
    rig.system = 200;
    assert_eq!(rig.read(), Some(Finding::First));
    assert!(rig.restarts.suspect(rig.now));
    rig.system = 503;
    assert_eq!(tries(&mut rig), (Some(Finding::Unknown), MAX_FAILURES));
    assert!(rig.restarts.take_suspicion() && !rig.restarts.take_suspicion());
}

/// Reads until the start counts as unknown.
fn read_until_unknown(rig: &mut Rig) {
    rig.system = 403;
    let mut finding = rig.read();
    while finding.is_none() {
        rig.now = rig.restarts.poll_timeout().expect("a retry is scheduled");
        finding = rig.go_on();
    }
    assert_eq!(finding, Some(Finding::Unknown));
    rig.system = 200;
}

#[test]
fn a_restart_while_the_start_is_unknown_is_detected_afterwards() {
    for is_known_before in [false, true] {
        for restarts in [false, true] {
            let mut rig = Rig::new(&[100]);
            if is_known_before {
                assert_eq!(rig.read(), Some(Finding::First));
            }
            read_until_unknown(&mut rig);
            rig.now += 20_000;
            // A proxy hides it.
            if restarts {
                rig.nodes[0].1 = 10_000 + rig.now / 1_000;
            }
            read_until_unknown(&mut rig);
            let otherwise = if is_known_before { Finding::Continuous } else { Finding::First };
            assert_eq!(rig.read(), Some(if restarts { Finding::Restarted } else { otherwise }));
            assert_eq!(rig.read(), Some(Finding::Continuous));
        }
    }
}

#[test]
fn a_handled_restart_is_not_found_again() {
    let mut rig = Rig::new(&[100]);
    assert_eq!(rig.read(), Some(Finding::First));
    // It was away, and afterwards refuses to report its start.
    rig.nodes[0].1 = 10_000 + rig.now / 1_000;
    assert!(rig.restarts.suspect(rig.now));
    read_until_unknown(&mut rig);
    assert!(rig.restarts.take_suspicion());
    assert_eq!(rig.read(), Some(Finding::First));
    read_until_unknown(&mut rig);
    // It is away while the start is unknown.
    rig.nodes[0].1 = 10_000 + rig.now / 1_000;
    assert!(!rig.restarts.suspect(rig.now));
    assert_eq!(rig.read(), Some(Finding::First));
}

#[test]
fn repeated_openings_cause_one_reading_per_second() {
    let mut rig = Rig::new(&[100]);
    rig.read();
    let asked = rig.asked;
    for _ in 0..10 {
        rig.now += 90;
        rig.restarts.handle_opened(rig.now);
        rig.go_on();
    }
    assert_eq!(rig.asked, asked);
    rig.now += READ_PAUSE;
    assert_eq!(rig.go_on(), Some(Finding::Continuous));
}
