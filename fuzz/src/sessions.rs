//! Sessions as the server drives them, without a server. A script stands for the clients, CouchDB
//! and the clock, and a model knows which messages each client may receive.
//!
//! A script consists of lines; a line that is no operation is skipped. `N` is the digit of a
//! client:
//!
//! ```text
//! N+3p       opens a session: 3p and 4p (Engine.IO, polling), 3w and 4w (WebSocket), j (howler.v1)
//! N>text     the client sends a message
//! N#2        the client sends one of the long messages of `long_message`
//! N*20       the client sends its last message so many times again
//! N=o        CouchDB answers the login: o and u are users, n (not authenticated), l (locked), x (unavailable), b (too busy),
//!            a and m (too many failures of the address or the name)
//! N:1234     CouchDB is to be asked whether the user is still logged in, after so many milliseconds
//! N?o        CouchDB answers the oldest such question, likewise; r is the first user in other roles, c the same with a new
//!            cookie. The answer is for the login that was checked, whoever has logged in since
//! N/name     the user may no longer read a database
//! N,         the client answers WebSocket pings no more from here on, or answers them again
//! N!         the messages of the session are written
//! N.         the client reads at once from here on, or stops
//! N^         the session moves from polling to a WebSocket
//! N-         the connection is lost
//! @+name     a database changes: + is created, - deleted, = updated
//! ~1234      time passes, in milliseconds; timeouts are handled when they are due
//! ~1234L     … and late, at the end of it
//! %          CouchDB cannot be asked from here on, or can again
//! $          the epoch of positions becomes known, or is another one from here on
//! ?          all clients resync
//!
//! No user may read a database whose name begins with `_`.
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use couchdb_howler::state::limits::{LONGEST_NAME, UNAUTHENTICATED_MESSAGE};
use couchdb_howler::state::metrics::CloseReason;
use couchdb_howler::state::session::{
    Action, Dialect, Opening, PendingLogin, Polling, Reply, Rules, Session, SessionContext, TAG, Transport, messages,
};
use couchdb_howler::state::subscriptions::Subscriptions;
use couchdb_howler::state::table::Key;
use couchdb_howler::state::timers::Millis;
use couchdb_howler::state::unauthenticated::Stage as Known;
use couchdb_howler::wire::couchdb::{ChangeKind, Credentials, Identity, LoginError, MAX_CREDENTIAL};
use couchdb_howler::wire::engine_io::{self, SID_LENGTH, Sid, Version};
use couchdb_howler::wire::howler_v1::{self, Operation};
use couchdb_howler::wire::name_list::NameList;
use couchdb_howler::wire::positions::Position;
use couchdb_howler::wire::secret::Secret;
use couchdb_howler::wire::security::Refusal;
use couchdb_howler::wire::socket_io::{self, Event};
use serde_json::Value;
use serde_json::value::RawValue;

const CLIENTS: u32 = 5;
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longest time of a script, in milliseconds.
const MAX_OPERATIONS: usize = 200;
const MAX_MESSAGES: usize = 600;
const MAX_LONG: usize = 6;
/// Databases that a client may subscribe to.
const MAX_SUBSCRIPTIONS: usize = 10_000;
/// Most bytes and messages that wait for the end of a login; the bytes are those of the rules.
const MAX_HELD: (usize, usize) = (64 * 1024, 256);
/// Most bytes that wait for a poll of the client, as in the server.
const MAX_OUTGOING: usize = 64 * 1024;
/// Time between packets that clients must not receive together.
const SPACING: Millis = 25;
/// Time to answer a ping, however late the ping is.
const PONG_WITHIN: Millis = 20_000;
/// Number of `subscribe` in a row over the limit that ends a session.
const MAX_REFUSALS: u8 = 16;
/// Time after which a client may reconnect, in milliseconds.
const RETRY_AFTER: Millis = 1_234;
/// Time after which a client may log in again after too many failures, in milliseconds.
const LIMITED_FOR: Millis = 4_321;
/// Most pending checks of a session.
const MAX_CHECKS: usize = 3;
/// Time for a login, or for CONNECT.
const LOGIN_WITHIN: Millis = 10_000;
/// A check this late counts as unanswered.
const CHECK_LATE: Millis = 5_000;
/// Unit in which the time of a check is kept.
const CHECK_UNIT: Millis = 100;

/// The state of a session from the view of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not logged in, or (Socket.IO) not connected, since this time.
    Awaiting(Millis),
    LoggingIn,
    Active,
    /// Socket.IO: rejected, and `41` is to follow.
    Refused,
    /// Socket.IO: the server sent `41`.
    Ended,
}

/// A request that needs a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    /// Id as sent; None for a request of `howler.v1` without one.
    id: Option<String>,
    what: Request,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    LogIn,
    Subscribe,
    LogOut,
    Other,
}

/// The expected content of a reply to `subscribe`: positions, and the databases that changed.
type Stand = (BTreeMap<String, Option<String>>, BTreeSet<String>);

struct Client {
    session: Session,
    /// Messages of the session that were not written.
    unwritten: Vec<String>,
    /// Whether the client reads at once.
    reads: bool,
    /// Whether the client answers WebSocket pings, and whether one is unanswered.
    answers: bool,
    unanswered: bool,
    /// Whether a login is under way, and its credentials.
    log_in: bool,
    credentials: Credentials,
    /// Current credentials of the user.
    kept: Credentials,
    /// Number of logins, and the logins that CouchDB is asked to check, each with the session's
    /// number for it.
    logins: u32,
    checks: VecDeque<(u32, u32)>,
    /// Message that the result makes the session send: that the login is over, or another cookie.
    expired: bool,
    renewed: bool,
    /// Time of the next check, and whether CouchDB could not be asked in time since it last named
    /// the user.
    check_due: Option<Millis>,
    doubtful: bool,
    /// Whether the client logged in with a password.
    by_password: bool,
    /// Whether the result of a check ends the session, so that the client logs in again.
    ran_out: bool,
    /// Database that the user may no longer read, until the client is notified.
    revoked: Option<String>,
    /// Number of requests in a row over the limit.
    refusals: u8,
    last_message: String,
    stage: Stage,
    /// Requests without a reply, in order.
    asked: VecDeque<Asked>,
    /// Deferred messages, and their bytes.
    held: (usize, usize),
    /// Whether CouchDB has rejected the login under way: nothing more is deferred.
    failing: bool,
    /// Whether the last message is the reply to a logout.
    logged_out: bool,
    user: Option<&'static str>,
    /// Subscriptions, with the changes without a notification.
    wanted: BTreeMap<String, Option<ChangeKind>>,
    heard: Millis,
    /// Time of the last ping, which may be late.
    pinged: Millis,
    /// Times at which CONNECT and the rejection were written.
    connected: Option<Millis>,
    refused: Option<Millis>,
    /// `howler.v1`: last epoch that the client received.
    epoch: Option<String>,
    /// `howler.v1`: expected content of the next reply to `subscribe`.
    stand: Option<Stand>,
    /// `howler.v1`: whether `resync` was sent since it was due.
    resync_due: bool,
}

/// The server's part of a script, and the model.
#[derive(Default)]
pub struct World {
    now: Millis,
    rules: Rules,
    subscriptions: Subscriptions,
    clients: BTreeMap<u32, Client>,
    unavailable: bool,
    /// Number of epochs so far.
    epochs: u32,
    sent: usize,
    long: usize,
}

/// Runs a script to its end, and on until all clients have left.
pub fn run(script: &str) {
    let mut world = World::default();
    world.rules.max_message = MAX_HELD.0;
    for line in script.lines().take(MAX_OPERATIONS) {
        world.operate(line);
        world.write_to_readers();
        world.check();
    }
    while let Some(slot) = world.clients.keys().next().copied() {
        world.remove(slot);
    }
    let s = &world.subscriptions;
    assert_eq!((s.databases(), s.total(), s.held()), (0, 0, 0), "everyone left");
}

impl World {
    fn operate(&mut self, line: &str) {
        let mut characters = line.chars();
        let (Some(first), second) = (characters.next(), characters.next()) else { return };
        let rest = characters.as_str();
        match (first, second) {
            ('~', Some(_)) => self.advance(&line[1..]),
            ('%', _) => self.unavailable ^= true,
            ('$', _) => self.change_epoch(),
            ('?', _) => self.resync(),
            ('@', Some('+')) => self.change(rest, ChangeKind::Created),
            ('@', Some('-')) => self.change(rest, ChangeKind::Deleted),
            ('@', Some('=')) => self.change(rest, ChangeKind::Updated),
            (digit, Some(operation)) => {
                if let Some(slot) = digit.to_digit(CLIENTS) {
                    self.operate_client(slot, operation, rest);
                }
            }
            _ => {}
        }
    }

    fn operate_client(&mut self, slot: u32, operation: char, rest: &str) {
        if operation == '+' {
            return self.open(slot, rest);
        }
        let Some(client) = self.clients.get_mut(&slot) else { return };
        match operation {
            '>' => self.say(slot, rest),
            '#' if self.long < MAX_LONG => {
                self.long += 1;
                let message = long_message(client.session.dialect(), rest.parse().unwrap_or(0));
                self.say(slot, &message);
            }
            '*' => {
                let message = client.last_message.clone();
                let times = if message.len() > 1024 { 2 } else { rest.parse().unwrap_or(0) };
                (0..times.min(MAX_MESSAGES)).for_each(|_| self.say(slot, &message));
            }
            '=' if client.log_in => self.answer_login(slot, rest),
            ':' => {
                let at = self.now + rest.parse::<u16>().map_or(0, Millis::from);
                if client.session.user().is_some() {
                    client.check_due = Some(at.next_multiple_of(CHECK_UNIT));
                }
                client.session.check_at(at);
            }
            '?' if !client.checks.is_empty() => self.answer_check(slot, rest),
            '/' => self.revoke(slot, rest),
            ',' => {
                client.answers ^= true;
                self.answer_ping(slot);
            }
            '!' => self.write(slot),
            '.' => client.reads ^= true,
            '^' if client.session.websocket().is_none() => {
                client.session.transport = Transport::WebSocket(key(slot));
                client.reads = true;
            }
            '-' => self.remove(slot),
            _ => {}
        }
    }

    fn open(&mut self, slot: u32, how: &str) {
        if self.clients.contains_key(&slot) {
            return;
        }
        let (now, mut actions) = (self.now, Vec::new());
        let turn = &mut SessionContext { now, rules: &self.rules, actions: &mut actions };
        let (version, websocket) = match how {
            "3p" => (Some(Version::V3), false),
            "3w" => (Some(Version::V3), true),
            "4p" => (Some(Version::V4), false),
            "4w" => (Some(Version::V4), true),
            "j" => (None, true),
            _ => return,
        };
        let session = match version {
            None => Session::open_json(key(slot), epoch(self.epochs).as_deref(), turn),
            Some(version) => {
                let credentials = Credentials::Password { username: "u".into(), password: Secret::new("p") };
                let transport = if websocket {
                    Transport::WebSocket(key(slot))
                } else {
                    Transport::Polling(Box::new(Polling::new(CLIENT)))
                };
                let (sid, tag) = (Sid([slot as u8; SID_LENGTH]), [0; TAG]);
                Session::open_socket_io(Opening { version, sid, tag, credentials, transport }, turn)
            }
        };
        let client = Client {
            session,
            unwritten: Vec::new(),
            reads: websocket,
            answers: true,
            unanswered: false,
            log_in: false,
            credentials: Credentials::Unusable,
            kept: Credentials::Unusable,
            logins: 0,
            checks: VecDeque::new(),
            expired: false,
            renewed: false,
            check_due: None,
            doubtful: false,
            by_password: false,
            ran_out: false,
            revoked: None,
            refusals: 0,
            last_message: String::new(),
            stage: Stage::Awaiting(now),
            asked: VecDeque::new(),
            held: (0, 0),
            failing: false,
            logged_out: false,
            user: None,
            wanted: BTreeMap::new(),
            heard: now,
            pinged: 0,
            connected: None,
            refused: None,
            epoch: None,
            stand: None,
            resync_due: false,
        };
        self.clients.insert(slot, client);
        self.perform(slot, actions);
    }

    /// Sends a message of a client.
    fn say(&mut self, slot: u32, text: &str) {
        self.sent += 1;
        let now = self.now;
        let Some(client) = self.clients.get_mut(&slot).filter(|_| self.sent <= MAX_MESSAGES) else { return };
        text.clone_into(&mut client.last_message);
        let longest = if client.is_known() { MAX_HELD.0 } else { UNAUTHENTICATED_MESSAGE };
        assert_eq!(client.session.max_message(&self.rules), longest, "{:?}", client.stage);
        assert_eq!(client.session.max_payload(&self.rules).min(MAX_HELD.0), longest);
        // The server closes the session for a longer one.
        if text.len() > longest {
            return self.close(slot, CloseReason::MessageTooBig);
        }
        client.hear(text, now);
        client.session.handle_activity(now);
        self.hand_over(slot, text);
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let waiting: usize = client.unwritten.iter().map(String::len).sum();
        if waiting > MAX_OUTGOING {
            match client.session.transport {
                Transport::WebSocket(_) => self.write(slot),
                Transport::Polling(_) => self.close(slot, CloseReason::NotReading),
            }
        }
    }

    /// Passes a message to a session, from the client or deferred.
    fn hand_over(&mut self, slot: u32, text: &str) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        if client.stage == Stage::LoggingIn && !client.failing && client.is_held(text) {
            client.held.0 += text.len();
            client.held.1 += 1;
        }
        self.with_session(slot, |session, turn| session.handle_message(text, turn));
    }

    fn answer_login(&mut self, slot: u32, how: &str) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let credentials = client.credentials.clone();
        let by_token = matches!(credentials, Credentials::Token(_));
        let identity = |name: &'static str| {
            let cookie = (!by_token).then(cookie);
            (Some(name), Ok(Identity { name: name.into(), roles: [].into(), cookie }))
        };
        let (user, answer) = match how {
            "o" => identity("one"),
            "u" => identity("another"),
            "n" => (None, Err(LoginError::NotAuthenticated)),
            "l" => (None, Err(LoginError::Locked)),
            "x" => (None, Err(LoginError::Unavailable)),
            "b" => (None, Err(LoginError::Overloaded)),
            "a" => (None, Err(LoginError::AddressLimit(LIMITED_FOR))),
            "m" => (None, Err(LoginError::NameLimit(LIMITED_FOR))),
            _ => return,
        };
        client.log_in = false;
        client.fail_if(client.stage == Stage::LoggingIn && answer.is_err());
        let (stage, said, logins) = (client.stage, client.unwritten.len(), client.logins);
        let other = stage == Stage::LoggingIn && user.is_some() && client.user.is_some() && client.user != user;
        if stage == Stage::LoggingIn {
            client.user = user.or(client.user);
            if user.is_some() {
                client.doubtful = false;
                client.by_password = false;
                client.kept = if by_token { credentials.clone() } else { Credentials::cookie(cookie().reveal()) };
            }
        }
        self.with_session(slot, |session, turn| {
            session.handle_login(answer, RETRY_AFTER, turn);
            session.keep_token(&credentials);
        });
        let Some(client) = self.clients.get_mut(&slot) else { return };
        if client.session.user().is_some() {
            let kept_cookie = matches!(client.kept, Credentials::Cookie(_));
            client.by_password |= kept_cookie && matches!(credentials, Credentials::Password { .. });
            client.by_password &= !by_token;
        }
        // A deferred message may have begun another login, behind others that subscribed.
        let goes_on = client.stage == Stage::Active || client.logins > logins;
        assert!(!other || client.wanted.is_empty() || goes_on, "subscriptions of another user");
        assert!(stage == Stage::LoggingIn || client.unwritten.len() == said, "nobody waits for it");
    }

    /// Passes the result of a check to a session.
    fn answer_check(&mut self, slot: u32, how: &str) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let user = |name: &str, roles: &[&str], cookie: Option<Secret>| {
            Ok(Identity { name: name.into(), roles: roles.iter().map(|role| (*role).into()).collect(), cookie })
        };
        let mut answer = match how {
            "o" => user("one", &[], Some(cookie())),
            "u" => user("another", &[], Some(cookie())),
            "r" => user("one", &["other"], Some(cookie())),
            "c" => user("one", &[], Some(Secret::new("AuthSession=new"))),
            "n" => Err(LoginError::NotAuthenticated),
            "l" => Err(LoginError::Locked),
            "x" => Err(LoginError::Unavailable),
            "b" => Err(LoginError::Overloaded),
            _ => return,
        };
        let Some((login, attempt)) = client.checks.pop_front() else { return };
        let is_current = login == client.logins;
        if let (Ok(identity), Credentials::Token(_)) = (&mut answer, &client.kept) {
            identity.cookie = None;
        }
        if client.stage == Stage::Active && is_current {
            client.expired = match &answer {
                Ok(identity) => Some(&*identity.name) != client.user,
                Err(error) => matches!(error, LoginError::NotAuthenticated | LoginError::Locked),
            };
            client.ran_out =
                client.doubtful && client.by_password && matches!(answer, Err(LoginError::NotAuthenticated));
            client.expired &= !client.ran_out;
            client.doubtful = match &answer {
                Ok(_) => client.expired && client.doubtful,
                Err(error) => client.doubtful || matches!(error, LoginError::Unavailable | LoginError::Overloaded),
            };
            let cookie = answer.as_ref().ok().and_then(|identity| identity.cookie.as_ref());
            if let Some(cookie) = cookie.filter(|_| !client.expired) {
                let kept = std::mem::replace(&mut client.kept, Credentials::cookie(cookie.reveal()));
                client.renewed = client.kept != kept && client.session.dialect() == Dialect::Json;
            }
        }
        let said = client.unwritten.len();
        let (speaks, ran_out) = (client.expired || client.renewed, client.ran_out);
        self.with_session(slot, |session, turn| session.handle_check(attempt, answer, turn));
        if let Some(client) = self.clients.get(&slot) {
            assert!(!client.expired && !client.renewed && !ran_out, "not notified");
            assert_eq!(client.unwritten.len(), said + usize::from(speaks));
        }
    }

    /// Ends a subscription as the server does after a change of permissions.
    fn revoke(&mut self, slot: u32, name: &str) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let subscribed = client.wanted.remove(name).is_some();
        let database = self.subscriptions.find(name);
        assert_eq!(database.is_some_and(|database| self.subscriptions.unsubscribe(slot, database)), subscribed);
        if subscribed {
            client.revoked = Some(name.to_owned());
            client.session.send_unsubscribed(name, Refusal::NotReader);
        }
        self.listen(slot);
    }

    /// Answers the ping of the last write.
    fn answer_ping(&mut self, slot: u32) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&slot) else { return };
        if client.answers && std::mem::take(&mut client.unanswered) {
            client.session.handle_activity(now);
            if client.session.dialect() != Dialect::SocketIo(Version::V4) {
                client.heard = now;
            }
            self.with_session(slot, Session::handle_pong);
        }
    }

    fn advance(&mut self, how: &str) {
        let (millis, late) = how.strip_suffix('L').map_or((how, false), |millis| (millis, true));
        let Ok(millis) = millis.parse::<u16>() else { return };
        let end = self.now + Millis::from(millis).min(60_000);
        if late {
            self.now = end;
        }
        let due = |world: &Self| {
            let timeouts =
                world.clients.iter().map(|(slot, client)| (client.session.poll_timeout(&world.rules), *slot));
            timeouts.min().filter(|(at, _)| *at <= end)
        };
        while let Some((at, slot)) = due(self) {
            self.now = self.now.max(at);
            self.with_session(slot, Session::handle_timeout);
            if let Some(client) = self.clients.get(&slot) {
                assert!(client.session.poll_timeout(&self.rules) > self.now, "a timeout that does not pass");
            }
            self.write_to_readers();
        }
        self.now = end;
    }

    fn change(&mut self, name: &str, kind: ChangeKind) {
        let (mut newly_dirty, mut expected) = (Vec::new(), BTreeSet::new());
        for (slot, client) in &mut self.clients {
            let idle = !client.is_dirty();
            let Some(pending) = client.wanted.get_mut(name) else { continue };
            *pending = Some(pending.map_or(kind, |earlier| earlier.merge(kind)));
            expected.extend(idle.then_some(*slot));
        }
        if let Some(database) = self.subscriptions.find(name) {
            assert_eq!(self.subscriptions.name(database), name);
            self.subscriptions.mark(database, kind, &mut newly_dirty);
        }
        assert_eq!(newly_dirty.len(), expected.len());
        assert_eq!(newly_dirty.into_iter().collect::<BTreeSet<_>>(), expected);
    }

    /// Passes an input to a session, then performs its actions, as the server does.
    fn with_session(&mut self, slot: u32, input: impl FnOnce(&mut Session, &mut SessionContext<'_>)) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let mut actions = Vec::new();
        input(&mut client.session, &mut SessionContext { now: self.now, rules: &self.rules, actions: &mut actions });
        self.perform(slot, actions);
    }

    fn perform(&mut self, slot: u32, actions: Vec<Action>) {
        self.listen(slot);
        for action in actions {
            match action {
                Action::LogIn(credentials) => self.log_in(slot, &credentials),
                Action::Subscribe(reply, names, given) => self.subscribe(slot, &reply, &names, given.as_deref()),
                Action::Unsubscribe(reply, names) => self.unsubscribe(slot, &reply, &names),
                Action::Resume(text) => self.hand_over(slot, &text),
                Action::Leave => {
                    self.subscriptions.remove_session(slot);
                    if let Some(client) = self.clients.get_mut(&slot) {
                        client.wanted.clear();
                    }
                }
                Action::Connect => {
                    if let Some(client) = self.clients.get_mut(&slot) {
                        client.session.confirm_connect(Sid([0xff; SID_LENGTH]));
                    }
                }
                Action::Check(credentials) => {
                    let Some(client) = self.clients.get_mut(&slot) else { continue };
                    assert_eq!(client.stage, Stage::Active, "nobody is logged in");
                    assert!(!matches!(credentials, Credentials::Password { .. }), "passwords are not kept");
                    if credentials != Credentials::Unusable && client.checks.len() < MAX_CHECKS {
                        client.checks.push_back((client.logins, client.session.attempt()));
                    }
                    client.doubtful |= client.check_due.is_some_and(|at| at + CHECK_LATE <= self.now);
                }
                Action::Reconsider => {
                    let roles =
                        self.clients.get(&slot).and_then(|client| client.session.user()).map(|(_, roles)| roles);
                    assert!(roles.is_some());
                }
                Action::Ping => {
                    let Some(client) = self.clients.get_mut(&slot) else { continue };
                    assert_eq!(client.session.dialect(), Dialect::Json);
                    client.pinged = self.now;
                }
                Action::Close(reason) => self.close(slot, reason),
            }
            self.listen(slot);
        }
    }

    fn log_in(&mut self, slot: u32, credentials: &Credentials) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        assert!(matches!(client.stage, Stage::Awaiting(_) | Stage::Active), "{:?}", client.stage);
        client.stage = Stage::LoggingIn;
        client.failing = false;
        client.logins += 1;
        client.credentials = credentials.clone();
        // A login that CouchDB still works on is given up.
        let unusable = matches!(credentials, Credentials::Unusable | Credentials::TooLong);
        client.log_in = !self.unavailable && !unusable;
        client.session.login = client.log_in.then_some(PendingLogin::Queued(key(slot)));
        client.fail_if(unusable || self.unavailable);
        if unusable {
            self.with_session(slot, |session, turn| session.handle_login(Err(credentials.error()), RETRY_AFTER, turn));
        } else if self.unavailable {
            self.with_session(slot, |session, turn| {
                session.handle_login(Err(LoginError::Unavailable), RETRY_AFTER, turn)
            });
        }
    }

    fn subscribe(&mut self, slot: u32, reply: &Reply, names: &NameList, given: Option<&str>) {
        let epoch = epoch(self.epochs);
        let Some(client) = self.clients.get_mut(&slot) else { return };
        assert_eq!(client.stage, Stage::Active, "who is not logged in subscribes to nothing");
        if names.iter().any(|(name, _)| name.len() > LONGEST_NAME) {
            client.refusals += 1;
            let ends = client.session.answer_limit(reply, "a name is too long");
            assert_eq!(ends, client.refusals >= MAX_REFUSALS);
            if ends {
                self.listen(slot);
                self.close(slot, CloseReason::TooManySubscriptions);
            }
            return;
        }
        let (names, refused): (Vec<_>, Vec<_>) = names.iter().partition(|(name, _)| !name.starts_with('_'));
        let refused: Vec<_> = refused.into_iter().map(|(name, _)| (name.into(), Refusal::NotReader)).collect();
        if names.is_empty() && !refused.is_empty() {
            if client.session.dialect() != Dialect::Json {
                client.refusals = 0;
            }
            return client.session.answer_forbidden(reply, &refused);
        }
        for (name, _) in &names {
            assert!(!name.is_empty());
            let full = client.wanted.len() >= MAX_SUBSCRIPTIONS;
            let new = !client.wanted.contains_key(*name);
            let database = self.subscriptions.hold(name);
            let outcome = self.subscriptions.subscribe(slot, database);
            self.subscriptions.release(database);
            match outcome {
                Ok(subscribed) => assert!(subscribed == new && !(new && full)),
                Err(_) => {
                    assert!(new && full);
                    return client.session.answer_error(reply, "LimitError", "too many");
                }
            }
            client.wanted.entry((*name).to_owned()).or_default();
        }
        let (mut stand, mut changed) = (Vec::new(), Vec::new());
        for (name, known) in &names {
            let position = position(name).filter(|_| epoch.is_some());
            stand.push((*name, position));
            let same = !known.differs(position, None) && given.is_none_or(|given| Some(given) == epoch.as_deref());
            if known.is_given() && !same {
                changed.push(*name);
            }
        }
        if client.session.dialect() == Dialect::Json {
            let texts = stand.iter().map(|(name, position)| ((*name).into(), position.map(|it| it.to_string())));
            client.stand = Some((texts.collect(), changed.iter().map(|name| (*name).to_owned()).collect()));
        }
        client.refusals = 0;
        client.session.answer_subscribed(reply, epoch.as_ref().map(|_| &*stand), &changed, epoch.as_deref(), &refused);
    }

    /// Sends a new epoch at once to clients that know an older one, as the server does.
    fn change_epoch(&mut self) {
        self.epochs += 1;
        let epoch = epoch(self.epochs);
        for slot in 0..CLIENTS {
            let Some(client) = self.clients.get_mut(&slot) else { continue };
            if self.epochs > 1 && client.session.dialect() == Dialect::Json {
                client.session.send_hello(epoch.as_deref());
            }
            self.listen(slot);
        }
    }

    fn resync(&mut self) {
        for slot in 0..CLIENTS {
            let Some(client) = self.clients.get_mut(&slot).filter(|client| client.session.is_active()) else {
                continue;
            };
            match client.session.dialect() {
                Dialect::Json => {
                    client.resync_due = true;
                    client.session.send_resync("a \"reason\"");
                }
                Dialect::SocketIo(_) => {
                    self.subscriptions.mark_all(slot);
                    for pending in client.wanted.values_mut() {
                        *pending = Some(pending.unwrap_or(ChangeKind::Updated));
                    }
                }
            }
            self.listen(slot);
        }
    }

    fn unsubscribe(&mut self, slot: u32, reply: &Reply, names: &NameList) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        for (name, _) in names.iter() {
            let database = self.subscriptions.find(name);
            let unsubscribed = database.is_some_and(|database| self.subscriptions.unsubscribe(slot, database));
            assert_eq!(unsubscribed, client.wanted.remove(name).is_some());
        }
        client.session.answer_ok(reply);
    }

    fn listen(&mut self, slot: u32) {
        let (now, epoch) = (self.now, epoch(self.epochs));
        if let Some(client) = self.clients.get_mut(&slot) {
            let said = client.session.outgoing.take();
            for message in messages(&said) {
                client.receive(std::str::from_utf8(message).expect("text"), epoch.as_deref(), now);
            }
        }
    }

    fn write_to_readers(&mut self) {
        for slot in 0..CLIENTS {
            if self.clients.get(&slot).is_some_and(|client| client.reads) {
                self.write(slot);
            }
        }
    }

    /// Writes the messages of a session, then every change.
    fn write(&mut self, slot: u32) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let said = !client.unwritten.is_empty();
        client.check_spacing(self.now);
        while let Some((database, kind)) = self.subscriptions.take_dirty(slot) {
            let pending = client.wanted.get_mut(self.subscriptions.name(database)).expect("subscribed to it");
            assert_eq!(pending.take(), Some(kind), "each change once");
            let authenticated = client.stage == Stage::LoggingIn && client.user.is_some();
            assert!(client.stage == Stage::Active || authenticated, "a change notified to {:?}", client.stage);
        }
        assert!(!client.is_dirty(), "a change is lost");
        if said {
            client.unanswered = client.session.websocket().is_some() && client.session.requests_receipt();
            client.session.handle_flushed(self.now);
            self.answer_ping(slot);
        }
    }

    /// Ends a session as the server does, after writing its messages.
    fn close(&mut self, slot: u32, reason: CloseReason) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let too_much = client.held.0 > MAX_HELD.0 || client.held.1 > MAX_HELD.1;
        assert_eq!(reason == CloseReason::TooMuchHeld, too_much);
        assert_eq!(reason == CloseReason::SessionExpired, client.ran_out);
        client.check_spacing(self.now);
        self.remove(slot);
    }

    fn remove(&mut self, slot: u32) {
        self.clients.remove(&slot);
        self.subscriptions.remove_session(slot);
    }

    /// Asserts the invariants between two turns.
    fn check(&self) {
        let mut total = 0;
        for slot in 0..CLIENTS {
            let client = self.clients.get(&slot);
            let wanted = client.map_or(0, |client| client.wanted.len());
            assert!(wanted <= MAX_SUBSCRIPTIONS);
            assert_eq!(self.subscriptions.count(slot), wanted);
            assert_eq!(self.subscriptions.is_dirty(slot), client.is_some_and(Client::is_dirty));
            total += wanted;
            if let Some(client) = client {
                client.check(self.now);
            }
        }
        assert_eq!(self.subscriptions.total(), total);
        if total < 1_000 {
            let names: BTreeSet<&String> = self.clients.values().flat_map(|client| client.wanted.keys()).collect();
            assert_eq!(self.subscriptions.databases(), names.len());
        }
    }
}

impl Client {
    fn is_dirty(&self) -> bool {
        self.wanted.values().any(Option::is_some)
    }

    /// Drops deferred messages, since CouchDB rejects the login under way.
    fn fail_if(&mut self, fails: bool) {
        if fails {
            self.failing = true;
            self.held = (0, 0);
        }
    }

    /// Returns whether a message waits for the end of a login.
    fn is_held(&self, text: &str) -> bool {
        self.session.dialect() == Dialect::Json || socket_event(text).is_some()
    }

    /// Returns whether a login has begun. Before that only short messages are allowed.
    fn is_known(&self) -> bool {
        !matches!(self.stage, Stage::Awaiting(_))
    }

    /// Records the request in a message of the client, and its direct effects.
    fn hear(&mut self, text: &str, now: Millis) {
        if self.session.dialect() == Dialect::Json {
            self.heard = now;
            let (id, operation) = howler_v1::parse_request(text);
            let what = match operation {
                Ok(Operation::LogIn(_)) => Request::LogIn,
                Ok(Operation::Subscribe(..)) => Request::Subscribe,
                Ok(Operation::LogOut) => Request::LogOut,
                _ => Request::Other,
            };
            let mut echo = Vec::new();
            howler_v1::write_ok(&mut echo, &id);
            let id = fields(std::str::from_utf8(&echo).expect("text")).get("id").map(|id| id.get().to_owned());
            self.asked.push_back(Asked { id, what });
            return;
        }
        let version_4 = self.session.dialect() == Dialect::SocketIo(Version::V4);
        let packet = engine_io::parse_packet(text);
        if !version_4 || packet.is_some_and(|packet| packet.kind == engine_io::PacketKind::Pong) {
            self.heard = now;
        }
        let Some(packet) = socket_packet(text) else { return };
        let over = matches!(self.stage, Stage::Refused | Stage::Ended);
        if packet.kind == socket_io::PacketKind::Disconnect && packet.namespace == "/" && !over {
            self.stage = Stage::Awaiting(now);
            self.asked.clear();
            self.held = (0, 0);
            self.user = None;
        }
        let listening = matches!(self.stage, Stage::LoggingIn | Stage::Active);
        if let (Some(event), Some(id), true) = (socket_event(text), packet.id, listening) {
            let what = match event {
                Event::Subscribe(_) => Request::Subscribe,
                Event::LogOut => Request::LogOut,
                Event::Unknown => return,
                Event::Unsubscribe(_) | Event::Heartbeat => Request::Other,
            };
            self.asked.push_back(Asked { id: Some(id.to_string()), what });
        }
    }

    /// Checks a message of the session.
    fn receive(&mut self, text: &str, epoch: Option<&str>, now: Millis) {
        match self.session.dialect() {
            Dialect::Json => self.receive_json(text, epoch),
            Dialect::SocketIo(version) => self.receive_packet(text, version, now),
        }
        assert!(now >= self.heard);
        self.unwritten.push(text.to_owned());
    }

    fn receive_json(&mut self, text: &str, epoch: Option<&str>) {
        let fields = fields(text);
        if let Some(event) = fields.get("event") {
            match event.get() {
                "\"hello\"" => {
                    self.epoch = string(&fields, "epoch");
                    assert_eq!(self.epoch.as_deref(), epoch);
                }
                "\"not-authenticated\"" => {
                    assert!(std::mem::take(&mut self.expired) && self.stage == Stage::Active, "{text}");
                }
                "\"session\"" => {
                    assert!(std::mem::take(&mut self.renewed) && string(&fields, "cookie").is_some(), "{text}");
                }
                "\"unsubscribed\"" => assert_eq!(string(&fields, "db"), self.revoked.take()),
                "\"goodbye\"" => {
                    assert!(self.ran_out && string(&fields, "reason").as_deref() == Some("session-expired"))
                }
                "\"resync\"" => {
                    assert_eq!(string(&fields, "reason").as_deref(), Some("a \"reason\""));
                    assert!(std::mem::take(&mut self.resync_due) && self.stage == Stage::Active, "{text}");
                }
                other => panic!("{other} is not the session's to say"),
            }
            return;
        }
        let asked = self.asked.pop_front().expect("nothing was asked");
        assert_eq!(asked.id.as_deref(), fields.get("id").map(|id| id.get()), "answers come in order");
        let ok = fields.contains_key("ok");
        assert_ne!(ok, fields.contains_key("error"));
        match asked.what {
            Request::LogIn if ok => {
                let by_token = matches!(self.credentials, Credentials::Token(_));
                assert!(self.stage == Stage::LoggingIn && fields.contains_key("cookie") != by_token);
                self.authenticated();
            }
            Request::LogIn => assert_eq!(self.stage, Stage::LoggingIn),
            Request::Subscribe => {
                assert_eq!(ok, fields.contains_key("changed"));
                if ok {
                    self.receive_stand(&fields, epoch);
                }
            }
            Request::LogOut | Request::Other => {}
        }
        let busy = string(&fields, "message").as_deref() == Some(LoginError::Overloaded.message());
        let retry_after = fields.get("retry_after_ms").map(|time| time.get().to_owned());
        // Other errors of this name concern subscriptions.
        let limits = [LoginError::AddressLimit(0), LoginError::NameLimit(0)].map(LoginError::message);
        let limited = string(&fields, "message").is_some_and(|message| limits.contains(&&*message));
        let expected = busy.then_some(RETRY_AFTER).or(limited.then_some(LIMITED_FOR));
        assert_eq!(retry_after, expected.map(|wait| wait.to_string()), "{text}");
    }

    /// Checks the reply to `subscribe`. A client that connected before the epoch was known receives
    /// it with the first positions.
    fn receive_stand(&mut self, fields: &BTreeMap<String, Box<RawValue>>, epoch: Option<&str>) {
        assert_eq!(self.stage, Stage::Active);
        let notified = string(fields, "epoch");
        if let Some(notified) = notified {
            assert!(self.epoch.is_none() && Some(&*notified) == epoch);
            self.epoch = Some(notified);
        }
        assert_eq!(self.epoch.as_deref(), epoch);
        let (stand, changed) = self.stand.take().expect("the server answers it");
        let dbs: Option<BTreeMap<String, Option<String>>> =
            fields.get("dbs").map(|dbs| serde_json::from_str(dbs.get()).expect("an object of positions"));
        assert_eq!(dbs, epoch.map(|_| stand));
        let read: Vec<String> = serde_json::from_str(fields["changed"].get()).expect("names");
        assert_eq!(read.len(), changed.len());
        assert_eq!(read.into_iter().collect::<BTreeSet<_>>(), changed);
    }

    fn receive_packet(&mut self, text: &str, version: Version, now: Millis) {
        let disconnects = socket_packet(text).is_some_and(|packet| packet.kind == socket_io::PacketKind::Disconnect);
        assert!(disconnects || !self.logged_out, "the answer to log-out comes with DISCONNECT");
        let packet = engine_io::parse_packet(text).expect("a packet");
        match packet.kind {
            engine_io::PacketKind::Open => assert!(self.unwritten.is_empty() && self.connected.is_none()),
            engine_io::PacketKind::Ping => {
                assert!(version == Version::V4 && packet.data.is_empty());
                self.pinged = now;
            }
            engine_io::PacketKind::Pong => assert_eq!(version, Version::V3),
            engine_io::PacketKind::Message => {}
            other => panic!("{other:?} is not the session's to say"),
        }
        let Some(packet) = socket_packet(text) else { return };
        assert!(packet.kind == socket_io::PacketKind::Error || packet.namespace == "/");
        match packet.kind {
            socket_io::PacketKind::Connect => assert_eq!(packet.data.is_empty(), version == Version::V3),
            socket_io::PacketKind::Disconnect => {
                assert!(matches!(self.stage, Stage::Refused | Stage::Active), "{:?}", self.stage);
                self.logged_out = false;
                self.stage = Stage::Ended;
                self.asked.clear();
            }
            socket_io::PacketKind::Event => match event_name(packet.data).as_str() {
                "authenticated" => {
                    assert_eq!(self.stage, Stage::LoggingIn);
                    self.authenticated();
                }
                "not-authenticated" => {
                    let expired = std::mem::take(&mut self.expired) && self.stage == Stage::Active;
                    assert!(expired || self.stage == Stage::LoggingIn, "{:?}", self.stage);
                    self.stage = Stage::Refused;
                    self.asked.clear();
                    self.held = (0, 0);
                }
                "unsubscribed" => {
                    let event: Value = serde_json::from_str(packet.data).expect("JSON");
                    assert_eq!(event[1].as_str().map(str::to_owned), self.revoked.take());
                }
                other => panic!("{other} is not the session's to say"),
            },
            socket_io::PacketKind::Ack => {
                assert_eq!(self.stage, Stage::Active);
                let asked = self.asked.pop_front().expect("nothing was asked");
                assert_eq!(asked.id, packet.id.map(|id| id.to_string()), "answers come in order");
                self.logged_out = asked.what == Request::LogOut;
                assert!(serde_json::from_str::<Value>(packet.data).expect("JSON").is_array());
            }
            socket_io::PacketKind::Error => {}
        }
    }

    fn authenticated(&mut self) {
        self.stage = Stage::Active;
        self.held = (0, 0);
    }

    /// Checks the messages of one write, which is one payload or segment.
    fn check_spacing(&mut self, now: Millis) {
        if self.session.dialect() == Dialect::Json {
            return self.unwritten.clear();
        }
        let (mut connect, mut refusal) = (false, false);
        for (number, text) in self.unwritten.iter().enumerate() {
            let Some(packet) = socket_packet(text) else { continue };
            match packet.kind {
                socket_io::PacketKind::Connect => {
                    connect = true;
                    self.connected = Some(now);
                }
                // As changes do, it may arrive with CONNECT if the client was connected before.
                socket_io::PacketKind::Event if event_name(packet.data) == "unsubscribed" => {}
                socket_io::PacketKind::Event => {
                    assert!(!connect, "with CONNECT: {text}");
                    assert!(self.connected.is_some_and(|at| now >= at + SPACING), "too soon: {text}");
                    if event_name(packet.data) == "not-authenticated" {
                        refusal = true;
                        self.refused = Some(now);
                    }
                }
                socket_io::PacketKind::Disconnect => {
                    assert!(!connect && !refusal, "DISCONNECT with what it must not come with");
                    let after_ack = number > 0 && is_ack(&self.unwritten[number - 1]);
                    assert!(after_ack || self.refused.is_none_or(|at| now >= at + SPACING), "DISCONNECT too soon");
                }
                socket_io::PacketKind::Ack | socket_io::PacketKind::Error => {}
            }
        }
        self.unwritten.clear();
    }

    fn check(&self, now: Millis) {
        assert!(self.session.outgoing.is_empty() && !self.logged_out && !self.resync_due && self.stand.is_none());
        assert!(!self.expired && !self.renewed && self.revoked.is_none());
        assert!(self.held.0 <= MAX_HELD.0 && self.held.1 <= MAX_HELD.1, "{:?}", self.held);
        let held = self.session.held_bytes();
        assert!(held >= self.held.0 && held <= self.held.0 + 2 * MAX_CREDENTIAL, "{held} of {:?}", self.held);
        let stage = self.session.stage();
        match self.stage {
            Stage::Active => assert_eq!(stage, None),
            Stage::Awaiting(_) | Stage::Refused | Stage::Ended => assert_eq!(stage, Some(Known::Idle)),
            Stage::LoggingIn => assert!(self.user.is_some() || stage != None, "{stage:?}"),
        }
        assert!(self.stage == Stage::LoggingIn || self.asked.is_empty(), "not answered: {:?}", self.asked);
        let silence = match self.session.dialect() {
            Dialect::SocketIo(Version::V3) => 30_000,
            Dialect::SocketIo(Version::V4) | Dialect::Json => 45_000,
        };
        assert!(now < (self.heard + silence).max(self.pinged + PONG_WITHIN), "silent for too long");
        match self.stage {
            Stage::Awaiting(since) => assert!(now < since + LOGIN_WITHIN && self.wanted.is_empty()),
            Stage::Refused | Stage::Ended => assert!(self.wanted.is_empty(), "subscribed in {:?}", self.stage),
            Stage::Active => assert!(self.session.is_active()),
            Stage::LoggingIn => assert!(!self.session.is_active()),
        }
    }
}

fn key(slot: u32) -> Key {
    Key { index: slot, generation: 0 }
}

fn cookie() -> Secret {
    Secret::new("AuthSession=abc; Version=1; Path=/; HttpOnly")
}

fn socket_packet(text: &str) -> Option<socket_io::Packet<'_>> {
    let packet = engine_io::parse_packet(text)?;
    if packet.kind == engine_io::PacketKind::Message { socket_io::parse_packet(packet.data) } else { None }
}

/// Returns the event in a message of the root namespace.
fn socket_event(text: &str) -> Option<Event> {
    let packet = socket_packet(text)?;
    if packet.kind != socket_io::PacketKind::Event || packet.namespace != "/" {
        return None;
    }
    socket_io::parse_event(packet.data)
}

fn is_ack(text: &str) -> bool {
    socket_packet(text).is_some_and(|packet| packet.kind == socket_io::PacketKind::Ack)
}

fn event_name(data: &str) -> String {
    let event: Value = serde_json::from_str(data).expect("JSON");
    event[0].as_str().expect("a name").to_owned()
}

/// Returns the name of an epoch; None before the first one.
fn epoch(number: u32) -> Option<String> {
    (number > 0).then(|| format!("epoch \"{number}\""))
}

/// Returns the position of a database; unknown for every third name.
fn position(name: &str) -> Option<Position> {
    let length = u32::try_from(name.len()).expect("short");
    (!length.is_multiple_of(3)).then_some(Position { counts: [length, 1, 0], doubt: length / 2, start: 0 })
}

fn string(fields: &BTreeMap<String, Box<RawValue>>, name: &str) -> Option<String> {
    fields.get(name).map(|value| serde_json::from_str(value.get()).expect("a string"))
}

fn fields(text: &str) -> BTreeMap<String, Box<RawValue>> {
    serde_json::from_str(text).expect("an object")
}

/// Returns a message at a limit: 0 to 3 subscribe to 4000 names each (some of them the same), 4 to
/// a name that is too long, 5 to the longest one; 6 is a long heartbeat.
fn long_message(dialect: Dialect, number: usize) -> String {
    let mut names = String::new();
    match number {
        0..=3 => (number * 3_500..number * 3_500 + 4_000).for_each(|n| {
            let _ = write!(names, "\"n{n}\",");
        }),
        4 => names = format!("\"{}\",", "n".repeat(LONGEST_NAME + 1)),
        5 => names = format!("\"{}\",", "n".repeat(LONGEST_NAME)),
        _ => {
            let space = " ".repeat(30_000);
            return match dialect {
                Dialect::SocketIo(_) => format!("4276[\"heartbeat\",{space}null]"),
                Dialect::Json => format!("{{\"id\":76,{space}\"op\":\"heartbeat\"}}"),
            };
        }
    }
    names.pop();
    match dialect {
        Dialect::SocketIo(_) => format!("4277[\"subscribe\",[{names}]]"),
        Dialect::Json => format!("{{\"id\":77,\"op\":\"subscribe\",\"dbs\":[{names}]}}"),
    }
}
