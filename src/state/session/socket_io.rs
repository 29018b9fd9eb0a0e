//! The Socket.IO side of a session, over Engine.IO 3 and 4.

use super::Session;
use super::action::{Action, Reply, Turn};
use super::phase::{Awaited, Phase};
use super::rules::Dialect;
use super::transport::{Opening, Transport};
use crate::state::metrics::CloseReason;
use crate::state::timers::Deadline;
use crate::wire::couchdb::{Credentials, Identity, LoginError};
use crate::wire::engine_io::{self, Open, Sid, Version};
use crate::wire::names::NameList;
use crate::wire::secret::Secret;
use crate::wire::socket_io::{self, Event, PacketKind};

/// Error message for an argument that is no list of names.
const NAMES_EXPECTED: &str = "expected an array of non-empty strings";

impl Session {
    /// Opens a session. In version 3 the server connects the client and logs in with the
    /// handshake's credentials; in version 4 the client connects.
    pub fn open_socket_io(opening: Opening, turn: &mut Turn<'_>) -> Self {
        let Opening { version, sid, tag, credentials, transport } = opening;
        let phase = match version {
            Version::V3 => Phase::LoggingIn(Box::new(Reply::Silent)),
            Version::V4 => awaiting(turn, CloseReason::LogInTimeout, credentials.clone()),
        };
        let may_upgrade = matches!(transport, Transport::Polling(_));
        let mut session = Self::new(Dialect::SocketIo(version), phase, transport, turn.now);
        session.tag = tag;
        let ping_interval = turn.rules.ping_interval;
        let ping_timeout = turn.rules.ping_timeout(version);
        let max_payload = turn.rules.max_payload;
        let open = Open { version, sid, may_upgrade, ping_interval, ping_timeout, max_payload };
        session.outgoing.push(|out| engine_io::write_open(out, &open));
        if version == Version::V3 {
            session.outgoing.push(|out| socket_io::write_connect(out, None));
            session.begin_login(credentials, turn);
        }
        session
    }

    /// Confirms CONNECT, in version 4 with a new id.
    pub fn confirm_connect(&mut self, id: Sid) {
        let id = (self.dialect == Dialect::SocketIo(Version::V4)).then_some(id);
        self.outgoing.push(|out| socket_io::write_connect(out, id));
    }

    pub(super) fn handle_engine_packet(&mut self, text: &str, turn: &mut Turn<'_>) {
        let Some(packet) = engine_io::parse_packet(text) else { return broken(turn) };
        let version_4 = self.dialect == Dialect::SocketIo(Version::V4);
        match packet.kind {
            engine_io::PacketKind::Ping if version_4 => broken(turn),
            engine_io::PacketKind::Ping => self.outgoing.push(|out| {
                out.push(b'3');
                out.extend_from_slice(packet.data.as_bytes());
            }),
            engine_io::PacketKind::Pong if version_4 => {
                self.heard = turn.now;
                self.pinged = false;
            }
            engine_io::PacketKind::Message => self.handle_packet(text, packet.data, turn),
            engine_io::PacketKind::Close => turn.actions.push(Action::Close(CloseReason::ClientClosed)),
            engine_io::PacketKind::Pong | engine_io::PacketKind::Upgrade | engine_io::PacketKind::Noop => {}
            engine_io::PacketKind::Open => broken(turn),
        }
    }

    /// Handles a Socket.IO packet. `text` is the whole message and `data` the packet in it.
    fn handle_packet(&mut self, text: &str, data: &str, turn: &mut Turn<'_>) {
        let Some(packet) = socket_io::parse_packet(data) else { return broken(turn) };
        match packet.kind {
            PacketKind::Connect if packet.namespace == "/" => self.connect(packet.data, turn),
            PacketKind::Connect => {
                let Dialect::SocketIo(version) = self.dialect else { return };
                self.outgoing.push(|out| socket_io::write_invalid_namespace(out, packet.namespace, version));
            }
            PacketKind::Disconnect if packet.namespace == "/" => self.disconnect(turn),
            PacketKind::Event => {
                let Some(event) = socket_io::parse_event(packet.data) else { return broken(turn) };
                if packet.namespace == "/" {
                    self.handle_event(text, event, packet.id.map_or(Reply::Silent, Reply::Ack), turn);
                }
            }
            PacketKind::Disconnect | PacketKind::Ack => {}
            PacketKind::Error => broken(turn),
        }
    }

    fn handle_event(&mut self, text: &str, event: Event, reply: Reply, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::LoggingIn(_) | Phase::Answering(_) => return self.hold(text, turn),
            Phase::Active => {}
            // Engine.IO 4: the first packet of a client has to be CONNECT.
            Phase::Awaiting(_) if self.dialect == Dialect::SocketIo(Version::V4) => return broken(turn),
            Phase::Awaiting(_) | Phase::Anonymous(_) | Phase::Refused | Phase::Ended(_) => return,
        }
        match event {
            Event::Subscribe(names) => {
                self.with_names(names, reply, turn, |reply, names| Action::Subscribe(reply, names, None));
            }
            Event::Unsubscribe(names) => self.with_names(names, reply, turn, Action::Unsubscribe),
            Event::Heartbeat => {
                if let Reply::Ack(id) = reply {
                    self.outgoing.push(|out| socket_io::write_ack(out, id, "{\"ok\":true}"));
                }
            }
            Event::LogOut => {
                // Both in one write: the client would wait for ever for a call in between.
                self.answer_ok(&reply);
                self.outgoing.push(|out| out.extend_from_slice(socket_io::DISCONNECT));
                self.end(CloseReason::LoggedOut, turn);
            }
            Event::Unknown => {}
        }
    }

    fn with_names(
        &mut self,
        names: Option<NameList>,
        reply: Reply,
        turn: &mut Turn<'_>,
        action: impl FnOnce(Reply, NameList) -> Action,
    ) {
        match names {
            Some(names) => self.act_on_names(names.len(), action(reply, names), turn),
            None => self.answer_error(&reply, "TypeError", NAMES_EXPECTED),
        }
    }

    /// Starts a login with the credentials of CONNECT, or with the known ones. CONNECT has no
    /// effect during a login and after the end of the session.
    fn connect(&mut self, auth: &str, turn: &mut Turn<'_>) {
        let known = match (&self.phase, &self.user) {
            (Phase::Awaiting(awaited), _) => awaited.credentials.clone(),
            (Phase::Active, Some(user)) => user.credentials(),
            _ => return,
        };
        let credentials = socket_io::parse_auth(auth).unwrap_or(known);
        turn.actions.push(Action::Connect);
        self.begin_login(credentials, turn);
        self.clear_from = Deadline::NEVER;
        self.phase = Phase::LoggingIn(Box::new(Reply::Silent));
    }

    /// Handles DISCONNECT of the client, which may connect again or close the transport. A client
    /// that is not connected gains no time by it.
    fn disconnect(&mut self, turn: &mut Turn<'_>) {
        if matches!(self.phase, Phase::Awaiting(_) | Phase::Ended(_) | Phase::Refused) {
            return;
        }
        turn.actions.push(Action::Leave);
        self.held = None;
        let cookie = self.user.take().map(|user| user.credentials()).unwrap_or_default();
        self.phase = awaiting(turn, CloseReason::ClientClosed, cookie);
    }

    fn end(&mut self, reason: CloseReason, turn: &mut Turn<'_>) {
        turn.actions.push(Action::Leave);
        self.held = None;
        self.phase = Phase::Ended(reason);
        self.clear_from = Deadline::NEVER;
        self.unconfirmed = false;
    }

    /// Sends the packet that waited for its spacing, if it may leave now.
    pub(super) fn advance(&mut self, turn: &mut Turn<'_>) {
        if self.next_from().is_none_or(|at| turn.now < at) {
            return;
        }
        match std::mem::replace(&mut self.phase, Phase::Active) {
            Phase::Answering(answer) => self.authenticate(*answer, turn),
            Phase::Refused => {
                self.outgoing.push(|out| out.extend_from_slice(socket_io::DISCONNECT));
                self.end(CloseReason::NotAuthenticated, turn);
            }
            other => self.phase = other,
        }
    }

    fn authenticate(&mut self, answer: Result<Identity, LoginError>, turn: &mut Turn<'_>) {
        match answer {
            Ok(identity) => {
                self.outgoing.push(|out| {
                    socket_io::write_authenticated(out, identity.cookie.as_ref().map(Secret::reveal));
                });
                self.phase = Phase::Active;
                self.release(turn);
            }
            Err(error) => self.refuse(error, turn),
        }
    }

    /// Notifies the client that it is not, or no longer, logged in; DISCONNECT follows.
    pub(super) fn refuse(&mut self, error: LoginError, turn: &mut Turn<'_>) {
        self.outgoing.push(|out| socket_io::write_not_authenticated(out, error.name(), error.message()));
        // An earlier login is void too.
        turn.actions.push(Action::Leave);
        self.held = None;
        self.phase = Phase::Refused;
        self.clear_from = Deadline::NEVER;
    }

    /// Notifies the client that the user may no longer read a database.
    pub(super) fn say_forbidden(&mut self, database: &str) {
        self.outgoing.push(|out| socket_io::write_unsubscribed(out, database));
    }
}

fn awaiting(turn: &Turn<'_>, otherwise: CloseReason, credentials: Credentials) -> Phase {
    Phase::Awaiting(Box::new(Awaited { until: turn.now + turn.rules.login_timeout, otherwise, credentials }))
}

fn broken(turn: &mut Turn<'_>) {
    turn.actions.push(Action::Close(CloseReason::BrokenPacket));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::rules::Rules;
    use super::super::transport::{Polling, TAG};
    use super::*;
    use crate::state::timers::Millis;

    /// Returns the actions of a session after an input.
    fn after(session: &mut Session, now: Millis, input: impl FnOnce(&mut Session, &mut Turn<'_>)) -> Vec<Action> {
        let mut actions = Vec::new();
        input(session, &mut Turn { now, rules: &Rules::default(), actions: &mut actions });
        actions
    }

    #[test]
    fn a_client_whose_second_login_fails_is_no_longer_notified() {
        let (version, credentials) = (Version::V3, Credentials::cookie("AuthSession=abc"));
        let (sid, tag) = (Sid([0; 20]), [0; TAG]);
        let transport = Transport::Polling(Box::new(Polling::new(Ipv4Addr::LOCALHOST.into())));
        let opening = Opening { version, sid, tag, credentials, transport };
        let (rules, actions) = (&Rules::default(), &mut Vec::new());
        let mut session = Session::open_socket_io(opening, &mut Turn { now: 0, rules, actions });
        session.handle_flushed(0);
        let identity = Identity { name: "u".into(), roles: [].into(), cookie: Some(Secret::new("AuthSession=abc")) };
        after(&mut session, 100, |session, turn| session.handle_login(Ok(identity), 0, turn));
        assert!(session.is_active());
        let asked = after(&mut session, 200, |session, turn| session.handle_message("40", turn));
        assert!(matches!(asked[..], [Action::Connect, Action::LogIn(_)]), "{asked:?}");
        session.handle_flushed(200);
        let refused = Err(LoginError::NotAuthenticated);
        assert_eq!(after(&mut session, 300, |session, turn| session.handle_login(refused, 0, turn)), [Action::Leave]);
    }

    #[test]
    fn a_client_that_is_pinged_late_has_the_whole_time_to_answer() {
        let rules = Rules { login_timeout: 1_000_000, ..Rules::default() };
        let key = crate::state::table::Key { index: 0, generation: 0 };
        let opening = Opening {
            version: Version::V4,
            sid: Sid([0; 20]),
            tag: [0; TAG],
            credentials: Credentials::Unusable,
            transport: Transport::WebSocket(key),
        };
        let mut actions = Vec::new();
        let mut turn = Turn { now: 0, rules: &rules, actions: &mut actions };
        for mut session in [Session::open_socket_io(opening, &mut turn), Session::open_json(key, None, &mut turn)] {
            session.outgoing.take();
            let mut timeout = |now: Millis| {
                let mut actions = Vec::new();
                session.handle_timeout(&mut Turn { now, rules: &rules, actions: &mut actions });
                let pinged = !session.outgoing.take().is_empty() || actions == [Action::Ping];
                (pinged, actions == [Action::Close(CloseReason::PingTimeout)], session.poll_timeout(&rules))
            };
            assert_eq!(timeout(60_000), (true, false, 80_000), "the server was stopped meanwhile");
            assert_eq!(timeout(79_999), (false, false, 80_000));
            assert!(timeout(80_000).1);
        }
    }
}
