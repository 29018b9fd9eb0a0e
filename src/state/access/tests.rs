use ChangeKind::{Created, Deleted, Updated};

use super::changes::{FIRST_RETRY, LONGEST_RETRY, REFRESH};
use super::waiting::{DECISION_TIMEOUT, MAX_STALE};
use super::*;
use crate::state::jitter::Jitter;
use crate::state::session::Reply;
use crate::wire::couchdb::ChangeKind;
use crate::wire::positions::Given;
use crate::wire::security::Security;

fn key(index: u32) -> Key {
    Key { index, generation: 0 }
}

fn security(json: &str) -> Verdict {
    Verdict::Security(Box::new(Security::parse(json.as_bytes()).expect("an object")))
}

fn of(user: &str) -> Verdict {
    security(&format!(r#"{{"members":{{"names":["{user}"]}}}}"#))
}

const MISSING: Verdict = Verdict::Missing;

/// The machine with the table of databases, and its results.
struct Scene {
    access: Access,
    subscriptions: Subscriptions,
    jitter: Jitter,
    now: Millis,
}

impl Scene {
    fn new() -> Self {
        let (access, subscriptions) = (Access::new(Policy::Members), Subscriptions::default());
        Self { access, subscriptions, jitter: Jitter::new(7), now: 0 }
    }

    fn wait(&mut self, session: u32, user: &str, names: &[&str]) {
        let ids: Vec<_> = names.iter().map(|name| self.subscriptions.hold(name)).collect();
        let wanted = ids.iter().map(|id| (*id, Given::Nothing)).collect();
        let undecided = Access::undecided(key(session), Reply::Silent, wanted, None);
        self.access.wait(undecided, &ids, user, self.now, &mut self.subscriptions);
    }

    fn id(&self, name: &str) -> DatabaseId {
        self.subscriptions.find(name).expect("it is kept")
    }

    fn decide(&mut self, name: &str, user: &str, roles: &[&str]) -> Decision {
        let roles: Vec<Box<str>> = roles.iter().map(|role| (*role).into()).collect();
        let database = self.subscriptions.hold(name);
        let decision = self.access.decide(database, user, &roles, &self.subscriptions);
        self.subscriptions.release(database);
        decision
    }

    /// Starts the lookups that are possible now.
    fn questions(&mut self) -> Vec<String> {
        let Self { access, subscriptions, .. } = self;
        std::iter::from_fn(|| access.next_lookup(subscriptions).map(|id| subscriptions.name(id).to_owned())).collect()
    }

    fn answer(&mut self, name: &str, verdict: impl Into<Option<Verdict>>) -> Option<ChangeKind> {
        let database = self.id(name);
        self.subscriptions.hold_id(database);
        let times = (self.now, &mut self.jitter);
        let pending_change = self.access.handle_verdict(database, verdict.into(), times, &mut self.subscriptions);
        self.access.release(database, &mut self.subscriptions);
        pending_change
    }

    fn line(&mut self, name: &str, kind: ChangeKind, is_news: bool) -> bool {
        self.access.handle_line(self.id(name), kind, is_news, None, &self.subscriptions)
    }

    /// Returns the sessions whose requests are decided; they are subscribed.
    fn ready(&mut self) -> Vec<u32> {
        let mut sessions = Vec::new();
        while let Some(undecided) = self.access.next_ready() {
            sessions.push(undecided.session.index);
            for (database, _) in &undecided.names {
                self.subscriptions.subscribe(undecided.session.index, *database).expect("within the limit");
            }
            self.access.end(undecided, &mut self.subscriptions);
        }
        sessions
    }

    fn late(&mut self) -> Vec<u32> {
        let mut sessions = Vec::new();
        while let Some(undecided) = self.access.next_late() {
            sessions.push(undecided.session.index);
            self.access.end(undecided, &mut self.subscriptions);
        }
        sessions
    }

    fn cancel(&mut self, session: u32) -> usize {
        self.access.cancel(key(session), &mut self.subscriptions).len()
    }

    fn withdraw(&mut self, session: u32, names: &[&str]) {
        let ids = names.iter().filter_map(|name| self.subscriptions.find(name)).collect();
        self.access.withdraw(key(session), &ids, &mut self.subscriptions);
    }

    fn unsubscribe(&mut self, session: u32, name: &str) {
        let database = self.id(name);
        self.subscriptions.unsubscribe(session, database);
        self.access.drop_unused(database, &mut self.subscriptions);
    }

    fn pass(&mut self, time: Millis) {
        self.now += time;
        self.access.handle_timeout(self.now, &mut self.subscriptions);
    }

    fn steps(&mut self) -> Vec<Step> {
        std::iter::from_fn(|| self.access.next_step(&self.subscriptions)).collect()
    }

    fn assert_empty(&mut self) {
        while !self.access.cancelled.is_empty() {
            self.access.sweep(&mut self.subscriptions);
        }
        let access = &self.access;
        assert!(access.entries.is_empty() && access.shares.is_empty() && access.awaited_by.is_empty());
        assert_eq!((access.awaited, access.undecided.len(), self.subscriptions.held()), (0, 0, 0));
    }
}

/// Creates a scene with one database, to which session 0 subscribes.
fn knows(verdict: Verdict) -> Scene {
    let mut scene = Scene::new();
    scene.wait(0, "u", &["db"]);
    assert_eq!(scene.questions(), ["db"]);
    assert_eq!(scene.answer("db", verdict), None);
    assert_eq!(scene.ready(), [0]);
    scene
}

const NONE: [&str; 0] = [];

#[test]
fn a_database_is_looked_up_once_for_all_waiting_requests() {
    let mut scene = Scene::new();
    scene.wait(0, "u", &["a", "b"]);
    scene.wait(1, "v", &["b"]);
    assert_eq!((scene.access.pending_names(key(0)), scene.access.pending_requests(key(0))), (2, 1));
    assert_eq!(scene.questions(), ["a", "b"]);
    scene.answer("b", of("u"));
    assert_eq!(scene.ready(), [1]);
    scene.answer("a", MISSING);
    assert_eq!(scene.ready(), [0]);
    assert_eq!((scene.access.pending_names(key(0)), scene.access.pending_requests(key(0))), (0, 0));
    assert_eq!(scene.decide("a", "u", &[]), Decision::Allowed, "it does not exist");
    assert_eq!(scene.decide("b", "u", &[]), Decision::Allowed);
    assert_eq!(scene.decide("b", "v", &[]), Decision::Forbidden(Refusal::NotReader));
    assert_eq!(scene.decide("b", "v", &["_admin"]), Decision::Allowed);
    assert_eq!(scene.decide("_users", "u", &[]), Decision::Forbidden(Refusal::NotReader));
    assert_eq!(scene.decide("c", "u", &[]), Decision::Unknown);
    assert_eq!(scene.decide("../c", "u", &[]), Decision::Allowed, "CouchDB cannot have it");
}

#[test]
fn sessions_are_served_in_turn() {
    let mut scene = Scene::new();
    let names: Vec<String> = (0..1_000).map(|number| format!("db-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    scene.wait(0, "u", &names);
    scene.wait(1, "v", &["mine"]);
    // The last lookup of the first session too, which does not wait for that session's turn.
    scene.wait(2, "w", &["db-999"]);
    assert_eq!(scene.questions(), ["db-0", "mine", "db-999", "db-1"]);
    scene.answer("db-999", MISSING);
    assert_eq!(scene.questions(), ["db-2"]);
    assert_eq!(scene.ready(), [2]);
}

#[test]
fn refreshes_and_new_lookups_do_not_starve_each_other() {
    let mut scene = Scene::new();
    let names: Vec<String> = (0..500).map(|number| format!("db-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    scene.wait(0, "u", &names);
    loop {
        let questions = scene.questions();
        if questions.is_empty() {
            break;
        }
        for name in questions {
            scene.answer(&name, of("u"));
        }
    }
    assert_eq!(scene.ready(), [0]);
    scene.pass(REFRESH);
    let fresh: Vec<String> = (0..500).map(|number| format!("new-{number}")).collect();
    scene.wait(1, "v", &fresh.iter().map(String::as_str).collect::<Vec<_>>());
    scene.line("db-499", Created, true);
    let mut asked = Vec::new();
    while asked.len() < 20 {
        for name in scene.questions() {
            scene.answer(&name, of("u"));
            asked.push(name);
        }
    }
    let new = asked.iter().filter(|name| name.starts_with("new-")).count();
    assert!((8..=12).contains(&new) && asked[..4].contains(&"db-499".to_owned()), "{asked:?}");
}

#[test]
fn a_lookup_that_is_no_longer_needed_is_dropped() {
    let mut scene = Scene::new();
    for round in 0..200 {
        let names: Vec<String> = (0..250).map(|number| format!("db-{round}-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        scene.wait(0, "u", &names);
        scene.withdraw(0, &names);
        assert!(scene.access.len() <= 4 && scene.access.queued_lookups() <= MAX_STALE + 250);
        assert_eq!(scene.ready(), [0], "the request is answered");
    }
    scene.wait(1, "v", &["mine"]);
    assert_eq!(scene.questions(), ["mine"]);
    scene.answer("mine", MISSING);
    scene.ready();
    scene.unsubscribe(1, "mine");
    scene.assert_empty();
    // A lookup in flight is kept until its reply.
    scene.wait(0, "u", &["a"]);
    assert_eq!(scene.questions(), ["a"]);
    assert_eq!(scene.cancel(0), 1);
    assert_eq!(scene.access.len(), 1);
    scene.answer("a", None);
    scene.assert_empty();
}

#[test]
fn databases_are_withdrawn_from_one_request_at_a_time() {
    let mut scene = Scene::new();
    scene.wait(0, "u", &["a", "b"]);
    scene.wait(0, "u", &["b", "c", "d"]);
    let databases = ["a", "b", "c"].map(|name| scene.id(name)).into();
    let requests: Vec<Key> = scene.access.requests_of(key(0)).collect();
    let Scene { access, subscriptions, .. } = &mut scene;
    assert_eq!(access.withdraw_from(requests[0], &databases, subscriptions), 2);
    assert_eq!(access.pending_names(key(0)), 3, "the other request is untouched");
    assert_eq!(scene.ready(), [0], "it goes on while the other one waits");
    let Scene { access, subscriptions, .. } = &mut scene;
    assert_eq!(access.withdraw_from(requests[0], &databases, subscriptions), 0, "it was answered");
    assert_eq!(access.withdraw_from(requests[1], &databases, subscriptions), 3);
    access.drop_stale_lookups(key(0));
    assert_eq!(scene.questions(), ["d"]);
    scene.answer("d", MISSING);
    assert_eq!(scene.ready(), [0]);
    scene.unsubscribe(0, "d");
    scene.assert_empty();
}

#[test]
fn a_session_that_leaves_drops_only_its_own_lookups() {
    let mut scene = Scene::new();
    scene.wait(0, "u", &["a", "b"]);
    scene.wait(1, "v", &["b", "c"]);
    assert_eq!(scene.cancel(0), 1);
    assert_eq!(scene.questions(), ["b", "c"]);
    for name in ["b", "c"] {
        scene.answer(name, MISSING);
    }
    assert_eq!(scene.ready(), [1]);
}

#[test]
fn waiting_databases_of_a_user_are_limited_and_leave_room_for_others() {
    let mut scene = Scene::new();
    let names: Vec<String> = (0..MAX_WAITING_OF_USER).map(|number| format!("db-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (session, part) in names.chunks(MAX_WAITING_OF_USER / 4).enumerate() {
        assert!(scene.access.has_room("u", part.len()));
        scene.wait(u32::try_from(session).expect("few"), "u", part);
    }
    assert!(!scene.access.has_room("u", 1) && scene.access.has_room("v", MAX_WAITING_OF_USER));
    assert_eq!(scene.cancel(0), 1);
    assert!(scene.access.has_room("u", MAX_WAITING_OF_USER / 4));
    for session in 1..4 {
        scene.cancel(session);
    }
    scene.assert_empty();
}

#[test]
fn a_verdict_is_refreshed_every_minute_while_there_are_subscribers() {
    let mut scene = knows(of("u"));
    scene.steps();
    let mut answered = 0;
    while scene.now < 600_000 {
        let due = scene.access.poll_timeout().expect("there is a refresh");
        scene.pass(due.saturating_sub(scene.now));
        assert_eq!(scene.decide("db", "u", &[]), Decision::Allowed, "the earlier verdict counts meanwhile");
        if scene.questions().is_empty() {
            continue;
        }
        scene.now += 5_000;
        assert!(scene.now - answered <= 60_000, "{answered} to {}", scene.now);
        answered = scene.now;
        assert_eq!(scene.answer("db", of("u")), None);
        assert_eq!(scene.steps(), [], "an equal verdict causes no pass");
    }
    scene.pass(REFRESH);
    assert_eq!(scene.questions(), ["db"]);
    scene.answer("db", of("v"));
    assert_eq!(scene.steps(), [Step::Decide(0, scene.id("db"))]);
    assert_eq!(scene.decide("db", "u", &[]), Decision::Forbidden(Refusal::NotReader));
    scene.unsubscribe(0, "db");
    assert_eq!(scene.access.len(), 1, "an existing database is kept until its refresh");
    scene.pass(REFRESH);
    assert_eq!(scene.access.poll_timeout(), None);
    scene.assert_empty();
}

#[test]
fn no_subscriber_is_notified_of_a_missing_database_before_its_lookup() {
    let mut scene = knows(MISSING);
    assert!(!scene.line("db", Created, true) && !scene.line("db", Updated, true));
    assert_eq!(scene.questions(), ["db"]);
    assert_eq!(scene.answer("db", None), None);
    assert!(!scene.line("db", Updated, true), "there is no verdict");
    assert_eq!(scene.questions(), NONE);
    scene.pass(FIRST_RETRY);
    assert_eq!(scene.questions(), ["db"]);
    assert_eq!(scene.answer("db", of("u")), None, "its subscribers are decided first");
    assert!(!scene.line("db", Updated, true), "subscribers are not notified during the pass");
    let id = scene.id("db");
    assert_eq!(scene.steps(), [Step::Decide(0, id), Step::Notify(id, Created)]);
    assert!(scene.line("db", Updated, true));
    // A position shows the change before the line does.
    let mut scene = knows(MISSING);
    assert!(!scene.line("db", Created, false));
    assert_eq!(scene.questions(), ["db"]);
    scene.answer("db", of("u"));
    assert_eq!(scene.steps().last(), Some(&Step::Notify(scene.id("db"), Created)), "no subscriber was notified of it");
}

#[test]
fn a_deleted_database_is_in_doubt_until_its_lookup() {
    let mut scene = knows(of("u"));
    scene.steps();
    assert!(scene.line("db", Updated, true) && !scene.line("db", Updated, false));
    assert_eq!(scene.questions(), NONE);
    assert!(scene.line("db", Deleted, true), "subscribers that could read it are notified");
    assert_eq!(scene.questions(), ["db"]);
    assert_eq!(scene.answer("db", None), None);
    for kind in [Updated, Created, Updated, Deleted, Updated] {
        assert!(!scene.line("db", kind, true), "it may be another one: {kind:?}");
    }
    assert_eq!(scene.decide("db", "v", &[]), Decision::Allowed, "it counts as missing");
    scene.pass(FIRST_RETRY);
    assert_eq!(scene.questions(), ["db"]);
    assert!(!scene.line("db", Created, true));
    assert_eq!(scene.answer("db", MISSING), None, "the reply may be outdated");
    assert_eq!(scene.questions(), ["db"]);
    scene.answer("db", of("v"));
    let id = scene.id("db");
    assert_eq!(scene.steps(), [Step::Decide(0, id), Step::Notify(id, Created)]);
    assert_eq!(scene.decide("db", "u", &[]), Decision::Forbidden(Refusal::NotReader));
    assert!(!scene.line("db", Created, false));
    assert_eq!(scene.questions(), ["db"], "a repeated line causes a lookup too");
    assert_eq!(scene.answer("db", of("v")), None);
    assert_eq!(scene.steps(), []);
}

#[test]
fn updates_do_not_invalidate_a_reply() {
    let mut scene = knows(MISSING);
    assert!(!scene.line("db", Created, true));
    assert_eq!(scene.questions(), ["db"]);
    assert!(!scene.line("db", Updated, true));
    assert_eq!(scene.answer("db", MISSING), None, "it existed by then");
    assert_eq!(scene.questions(), ["db"]);
    assert!(!scene.line("db", Updated, true));
    scene.answer("db", of("u"));
    assert!(matches!(scene.steps()[..], [Step::Decide(..), Step::Notify(..)]));
    // A database that was deleted at once stays missing.
    let mut scene = knows(MISSING);
    assert!(!scene.line("db", Created, true) && !scene.line("db", Deleted, true));
    assert_eq!(scene.questions(), ["db"]);
    assert!(scene.answer("db", MISSING).is_some());
    assert_eq!(scene.questions(), NONE);
}

#[test]
fn a_database_in_doubt_shows_its_earlier_position() {
    let mut scene = knows(MISSING);
    let id = scene.id("db");
    let position = |counts| Position { counts, ..Position::default() };
    let look_up = |scene: &mut Scene, counts: [u32; 3]| {
        let rows = counts.map(|number| crate::wire::couchdb::Revision { number, mark: number });
        scene.subscriptions.tracked_mut(id).handle_lookup(rows, false, 0).count();
    };
    look_up(&mut scene, [7, 1, 1]);
    assert_eq!(scene.access.visible_position(id, &scene.subscriptions), Some(position([7, 1, 1])));
    // A position shows the creation before any line does.
    look_up(&mut scene, [8, 2, 1]);
    assert_eq!(scene.access.visible_position(id, &scene.subscriptions), Some(position([8, 1, 1])));
    let before = Some(position([7, 1, 1]));
    scene.access.handle_line(id, Created, true, before, &scene.subscriptions);
    look_up(&mut scene, [9, 2, 1]);
    assert_eq!(scene.access.visible_position(id, &scene.subscriptions), before);
    assert_eq!(scene.access.notified_position(id, &scene.subscriptions), before);
    assert_eq!(scene.questions(), ["db"]);
    scene.answer("db", of("u"));
    assert_eq!(scene.access.visible_position(id, &scene.subscriptions), Some(position([9, 2, 1])));
}

#[test]
fn failed_lookups_are_repeated_with_backoff_while_they_are_needed() {
    let mut scene = knows(of("u"));
    scene.steps();
    scene.line("db", Deleted, true);
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert_eq!(scene.questions(), ["db"]);
        scene.answer("db", None);
        let due = scene.access.retries.peek().expect("a retry is scheduled").0.0;
        waits.push(due - scene.now);
        scene.pass(due - scene.now);
    }
    assert!(waits[0] <= FIRST_RETRY && waits[11] >= LONGEST_RETRY / 2, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= LONGEST_RETRY), "{waits:?}");
    assert_eq!(scene.questions(), ["db"]);
    scene.unsubscribe(0, "db");
    scene.answer("db", None);
    scene.assert_empty();
    assert_eq!(scene.questions(), NONE);
}

#[test]
fn undecided_requests_fail_after_a_while() {
    let mut scene = Scene::new();
    scene.wait(0, "u", &["a"]);
    scene.wait(1, "v", &["a", "b"]);
    assert_eq!(scene.questions(), ["a", "b"]);
    scene.withdraw(1, &["a"]);
    assert_eq!(scene.access.pending_names(key(1)), 1);
    assert_eq!(scene.cancel(1), 1);
    scene.answer("a", None);
    scene.pass(DECISION_TIMEOUT);
    assert_eq!(scene.late(), [0]);
    assert_eq!(scene.access.pending_requests(key(0)), 0);
    // The reply still comes, and nothing remains.
    scene.answer("b", MISSING);
    scene.assert_empty();
}

#[test]
fn subscribers_that_come_and_go_during_a_pass_are_all_decided() {
    let mut scene = knows(of("u"));
    scene.steps();
    let id = scene.id("db");
    for session in 1..10 {
        scene.subscriptions.subscribe(session, id).expect("within the limit");
    }
    scene.line("db", Created, true);
    scene.questions();
    scene.answer("db", of("v"));
    let mut decided = HashSet::new();
    let mut gone = [9, 0, 5].into_iter();
    while let Some(step) = scene.access.next_step(&scene.subscriptions) {
        let Step::Decide(session, _) = step else {
            assert_eq!(step, Step::Notify(id, Created));
            break;
        };
        decided.insert(session);
        if let Some(session) = gone.next() {
            scene.subscriptions.unsubscribe(session, id);
        }
    }
    assert!((1..9).filter(|session| *session != 5).all(|session| decided.contains(&session)), "{decided:?}");
    // A session with new roles is not written to until all of its databases are decided.
    scene.access.reconsider_session(key(3), &scene.subscriptions);
    assert!(scene.access.is_withheld(key(3)) && !scene.access.is_withheld(key(4)));
    assert_eq!(scene.steps(), [Step::Decide(3, id), Step::Resume(key(3))]);
    assert!(!scene.access.is_withheld(key(3)) && !scene.access.has_work());
}
