//! The Socket.IO side of a session, over Engine.IO 3 and 4.

use super::Session;
use super::action::{Action, Reply, SessionContext};
use super::phase::{PendingConnect, Phase};
use super::rules::Dialect;
use super::transport::{Opening, Transport};
use crate::state::metrics::CloseReason;
use crate::state::timers::Deadline;
use crate::wire::couchdb::{Credentials, Identity, LoginError};
use crate::wire::engine_io::{self, Open, Sid, Version};
use crate::wire::name_list::NameList;
use crate::wire::secret::Secret;
use crate::wire::socket_io::{self, Event, PacketKind};

/// Error message for an argument that is no list of names.
const NAMES_EXPECTED: &str = "expected an array of non-empty strings";

impl Session {
    /// Opens a session. In version 3 the server connects the client and logs in with the
    /// handshake's credentials; in version 4 the client connects.
    pub fn open_socket_io(opening: Opening, context: &mut SessionContext<'_>) -> Self {
        let Opening { version, sid, tag, credentials, transport } = opening;
        let phase = match version {
            Version::V3 => Phase::LoggingIn(Box::new(Reply::Silent)),
            Version::V4 => awaiting(context, CloseReason::LogInTimeout, credentials.clone()),
        };
        let may_upgrade = matches!(transport, Transport::Polling(_));
        let mut session = Self::new(Dialect::SocketIo(version), phase, transport, context.now);
        session.tag = tag;
        let ping_interval = context.rules.ping_interval;
        let ping_timeout = context.rules.ping_timeout(version);
        let max_payload = context.rules.max_payload;
        let open = Open { version, sid, may_upgrade, ping_interval, ping_timeout, max_payload };
        session.outgoing.push(|out| engine_io::write_open(out, &open));
        if version == Version::V3 {
            session.outgoing.push(|out| socket_io::write_connect(out, None));
            session.begin_login(credentials, context);
        }
        session
    }

    /// Confirms CONNECT, in version 4 with a new id.
    pub fn confirm_connect(&mut self, id: Sid) {
        let id = (self.dialect == Dialect::SocketIo(Version::V4)).then_some(id);
        self.outgoing.push(|out| socket_io::write_connect(out, id));
    }

    pub(super) fn handle_engine_packet(&mut self, text: &str, context: &mut SessionContext<'_>) {
        let Some(packet) = engine_io::parse_packet(text) else { return broken(context) };
        let version_4 = self.dialect == Dialect::SocketIo(Version::V4);
        match packet.kind {
            engine_io::PacketKind::Ping if version_4 => broken(context),
            engine_io::PacketKind::Ping => self.outgoing.push(|out| {
                out.push(b'3');
                out.extend_from_slice(packet.data.as_bytes());
            }),
            engine_io::PacketKind::Pong if version_4 => {
                self.last_seen = context.now;
                self.ping_pending = false;
            }
            engine_io::PacketKind::Message => self.handle_packet(text, packet.data, context),
            engine_io::PacketKind::Close => context.actions.push(Action::Close(CloseReason::ClientClosed)),
            engine_io::PacketKind::Pong | engine_io::PacketKind::Upgrade | engine_io::PacketKind::Noop => {}
            engine_io::PacketKind::Open => broken(context),
        }
    }

    /// Handles a Socket.IO packet. `text` is the whole message and `data` the packet in it.
    fn handle_packet(&mut self, text: &str, data: &str, context: &mut SessionContext<'_>) {
        let Some(packet) = socket_io::parse_packet(data) else { return broken(context) };
        match packet.kind {
            PacketKind::Connect if packet.namespace == "/" => self.connect(packet.data, context),
            PacketKind::Connect => {
                let Dialect::SocketIo(version) = self.dialect else { return };
                self.outgoing.push(|out| socket_io::write_invalid_namespace(out, packet.namespace, version));
            }
            PacketKind::Disconnect if packet.namespace == "/" => self.disconnect(context),
            PacketKind::Event => {
                let Some(event) = socket_io::parse_event(packet.data) else { return broken(context) };
                if packet.namespace == "/" {
                    self.handle_event(text, event, packet.id.map_or(Reply::Silent, Reply::Ack), context);
                }
            }
            PacketKind::Disconnect | PacketKind::Ack => {}
            PacketKind::Error => broken(context),
        }
    }

    fn handle_event(&mut self, text: &str, event: Event, reply: Reply, context: &mut SessionContext<'_>) {
        match self.phase {
            Phase::LoggingIn(_) | Phase::AnswerPending(_) => return self.defer(text, context),
            Phase::Active => {}
            // Engine.IO 4: the first packet of a client has to be CONNECT.
            Phase::AwaitingConnect(_) if self.dialect == Dialect::SocketIo(Version::V4) => return broken(context),
            Phase::AwaitingConnect(_) | Phase::Anonymous(_) | Phase::Refused | Phase::Ended(_) => return,
        }
        match event {
            Event::Subscribe(names) => {
                self.with_names(names, reply, context, |reply, names| Action::Subscribe(reply, names, None));
            }
            Event::Unsubscribe(names) => self.with_names(names, reply, context, Action::Unsubscribe),
            Event::Heartbeat => {
                if let Reply::Ack(id) = reply {
                    self.outgoing.push(|out| socket_io::write_ack(out, id, "{\"ok\":true}"));
                }
            }
            Event::LogOut => {
                // Both in one write: the client would wait for ever for a call in between.
                self.answer_ok(&reply);
                self.outgoing.push(|out| out.extend_from_slice(socket_io::DISCONNECT));
                self.end(CloseReason::LoggedOut, context);
            }
            Event::Unknown => {}
        }
    }

    fn with_names(
        &mut self,
        names: Option<NameList>,
        reply: Reply,
        context: &mut SessionContext<'_>,
        action: impl FnOnce(Reply, NameList) -> Action,
    ) {
        match names {
            Some(names) => self.act_on_names(names.len(), action(reply, names), context),
            None => self.answer_error(&reply, "TypeError", NAMES_EXPECTED),
        }
    }

    /// Starts a login with the credentials of CONNECT, or with the known ones. CONNECT has no
    /// effect during a login and after the end of the session.
    fn connect(&mut self, auth: &str, context: &mut SessionContext<'_>) {
        let known = match (&self.phase, &self.user) {
            (Phase::AwaitingConnect(awaited), _) => awaited.credentials.clone(),
            (Phase::Active, Some(user)) => user.credentials(),
            _ => return,
        };
        let credentials = socket_io::parse_auth(auth).unwrap_or(known);
        context.actions.push(Action::Connect);
        self.begin_login(credentials, context);
        self.next_packet_at = Deadline::NEVER;
        self.phase = Phase::LoggingIn(Box::new(Reply::Silent));
    }

    /// Handles DISCONNECT of the client, which may connect again or close the transport. A client
    /// that is not connected gains no time by it.
    fn disconnect(&mut self, context: &mut SessionContext<'_>) {
        if matches!(self.phase, Phase::AwaitingConnect(_) | Phase::Ended(_) | Phase::Refused) {
            return;
        }
        context.actions.push(Action::Leave);
        self.deferred = None;
        let cookie = self.user.take().map(|user| user.credentials()).unwrap_or_default();
        self.phase = awaiting(context, CloseReason::ClientClosed, cookie);
    }

    fn end(&mut self, reason: CloseReason, context: &mut SessionContext<'_>) {
        context.actions.push(Action::Leave);
        self.deferred = None;
        self.phase = Phase::Ended(reason);
        self.next_packet_at = Deadline::NEVER;
        self.awaits_receipt = false;
    }

    /// Sends the packet that waited for its spacing, if it may leave now.
    pub(super) fn advance(&mut self, context: &mut SessionContext<'_>) {
        if self.next_packet_time().is_none_or(|at| context.now < at) {
            return;
        }
        match std::mem::replace(&mut self.phase, Phase::Active) {
            Phase::AnswerPending(answer) => self.authenticate(*answer, context),
            Phase::Refused => {
                self.outgoing.push(|out| out.extend_from_slice(socket_io::DISCONNECT));
                self.end(CloseReason::NotAuthenticated, context);
            }
            other => self.phase = other,
        }
    }

    fn authenticate(&mut self, answer: Result<Identity, LoginError>, context: &mut SessionContext<'_>) {
        match answer {
            Ok(identity) => {
                self.outgoing.push(|out| {
                    socket_io::write_authenticated(out, identity.cookie.as_ref().map(Secret::reveal));
                });
                self.phase = Phase::Active;
                self.resume_deferred(context);
            }
            Err(error) => self.refuse(error, context),
        }
    }

    /// Notifies the client that it is not, or no longer, logged in; DISCONNECT follows.
    pub(super) fn refuse(&mut self, error: LoginError, context: &mut SessionContext<'_>) {
        self.outgoing.push(|out| socket_io::write_not_authenticated(out, error.name(), error.message()));
        // An earlier login is void too.
        context.actions.push(Action::Leave);
        self.deferred = None;
        self.phase = Phase::Refused;
        self.next_packet_at = Deadline::NEVER;
    }

    /// Notifies the client that the user may no longer read a database.
    pub(super) fn send_forbidden(&mut self, database: &str) {
        self.outgoing.push(|out| socket_io::write_unsubscribed(out, database));
    }
}

fn awaiting(context: &SessionContext<'_>, timeout_reason: CloseReason, credentials: Credentials) -> Phase {
    Phase::AwaitingConnect(Box::new(PendingConnect {
        until: context.now + context.rules.login_timeout,
        timeout_reason,
        credentials,
    }))
}

fn broken(context: &mut SessionContext<'_>) {
    context.actions.push(Action::Close(CloseReason::BrokenPacket));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::rules::Rules;
    use super::super::transport::{Polling, TAG};
    use super::*;
    use crate::state::timers::Millis;

    /// Returns the actions of a session after an input.
    fn after(
        session: &mut Session,
        now: Millis,
        input: impl FnOnce(&mut Session, &mut SessionContext<'_>),
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        input(session, &mut SessionContext { now, rules: &Rules::default(), actions: &mut actions });
        actions
    }

    #[test]
    fn a_client_whose_second_login_fails_is_no_longer_notified() {
        let (version, credentials) = (Version::V3, Credentials::cookie("AuthSession=abc"));
        let (sid, tag) = (Sid([0; 20]), [0; TAG]);
        let transport = Transport::Polling(Box::new(Polling::new(Ipv4Addr::LOCALHOST.into())));
        let opening = Opening { version, sid, tag, credentials, transport };
        let (rules, actions) = (&Rules::default(), &mut Vec::new());
        let mut session = Session::open_socket_io(opening, &mut SessionContext { now: 0, rules, actions });
        session.handle_flushed(0);
        let identity = Identity { name: "u".into(), roles: [].into(), cookie: Some(Secret::new("AuthSession=abc")) };
        after(&mut session, 100, |session, context| session.handle_login(Ok(identity), 0, context));
        assert!(session.is_active());
        let asked = after(&mut session, 200, |session, context| session.handle_message("40", context));
        assert!(matches!(asked[..], [Action::Connect, Action::LogIn(_)]), "{asked:?}");
        session.handle_flushed(200);
        let refused = Err(LoginError::NotAuthenticated);
        assert_eq!(
            after(&mut session, 300, |session, context| session.handle_login(refused, 0, context)),
            [Action::Leave]
        );
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
        let mut context = SessionContext { now: 0, rules: &rules, actions: &mut actions };
        for mut session in [Session::open_socket_io(opening, &mut context), Session::open_json(key, None, &mut context)]
        {
            session.outgoing.take();
            let mut timeout = |now: Millis| {
                let mut actions = Vec::new();
                session.handle_timeout(&mut SessionContext { now, rules: &rules, actions: &mut actions });
                let pinged = !session.outgoing.take().is_empty() || actions == [Action::Ping];
                (pinged, actions == [Action::Close(CloseReason::PingTimeout)], session.poll_timeout(&rules))
            };
            assert_eq!(timeout(60_000), (true, false, 80_000), "the server was stopped meanwhile");
            assert_eq!(timeout(79_999), (false, false, 80_000));
            assert!(timeout(80_000).1);
        }
    }
}
