//! The Socket.IO side of a session.

use super::{Action, Dialect, Phase, Reply, Session, Turn};
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::wire::couchdb::{Credentials, Identity, LogInError};
use crate::wire::engine_io::{self, Version};
use crate::wire::json::Names;
use crate::wire::socket_io::{self, Event, PacketKind};
pub(super) use crate::wire::socket_io::{write_ack as ack, write_error_ack as error_ack};

/// What an acknowledgement says of an argument that is none.
const NAMES_EXPECTED: &str = "expected an array of non-empty strings";

impl Session {
    /// Opens a session of Engine.IO 3 over a WebSocket: the server speaks first, and logs in with what
    /// the handshake carried.
    pub fn open_socket_io(sid: &str, credentials: Credentials, connection: Key, turn: &mut Turn<'_>) -> Self {
        let phase = Phase::LoggingIn(Reply::Silent);
        let mut session = Self::new(Dialect::SocketIo(Version::V3), phase, connection, turn.now);
        let rules = turn.rules;
        session.outgoing.push(|out| engine_io::write_open(out, sid, rules.ping_interval, rules.ping_timeout));
        session.outgoing.push(|out| out.extend_from_slice(socket_io::CONNECT));
        turn.actions.push(Action::LogIn(credentials));
        session
    }

    pub(super) fn handle_engine_packet(&mut self, text: &str, turn: &mut Turn<'_>) {
        let Some(packet) = engine_io::parse_packet(text) else { return broken(turn) };
        match packet.kind {
            engine_io::PacketKind::Ping => self.outgoing.push(|out| {
                out.push(b'3');
                out.extend_from_slice(packet.data.as_bytes());
            }),
            engine_io::PacketKind::Message => self.handle_packet(text, packet.data, turn),
            engine_io::PacketKind::Close => turn.actions.push(Action::Close(CloseReason::ClientClosed)),
            engine_io::PacketKind::Pong | engine_io::PacketKind::Upgrade | engine_io::PacketKind::Noop => {}
            engine_io::PacketKind::Open => broken(turn),
        }
    }

    /// `text` is the whole message and `data` the Socket.IO packet in it.
    fn handle_packet(&mut self, text: &str, data: &str, turn: &mut Turn<'_>) {
        let Some(packet) = socket_io::parse_packet(data) else { return broken(turn) };
        match packet.kind {
            PacketKind::Connect if packet.namespace == "/" => self.connect_again(turn),
            PacketKind::Connect => {
                self.outgoing.push(|out| socket_io::write_invalid_namespace(out, packet.namespace));
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

    fn handle_event(&mut self, text: &str, event: Event<'_>, reply: Reply, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::LoggingIn(_) | Phase::Answering(_) => return self.hold(text, turn),
            Phase::Active => {}
            Phase::Anonymous(_) | Phase::Refused | Phase::Ended(_) => return,
        }
        match event {
            Event::Subscribe(names) => {
                let with_no_position = |name: Box<str>| (name, None);
                self.with_names(names, reply, turn, |reply, names| {
                    Action::Subscribe(reply, names.into_iter().map(with_no_position).collect())
                });
            }
            Event::Unsubscribe(names) => self.with_names(names, reply, turn, Action::Unsubscribe),
            Event::Heartbeat => {
                if let Reply::Ack(id) = reply {
                    self.outgoing.push(|out| ack(out, id, "{\"ok\":true}"));
                }
            }
            Event::LogOut => {
                // Together, in one write: a client's call in between would wait for ever.
                self.answer_ok(&reply);
                self.outgoing.push(|out| out.extend_from_slice(socket_io::DISCONNECT));
                self.end(CloseReason::LoggedOut, turn);
            }
            Event::Unknown => {}
        }
    }

    fn with_names(
        &mut self,
        names: Names<'_>,
        reply: Reply,
        turn: &mut Turn<'_>,
        action: impl FnOnce(Reply, Vec<Box<str>>) -> Action,
    ) {
        match names {
            Some(names) => turn.actions.push(action(reply, names.into_iter().map(Into::into).collect())),
            None => self.answer_error(&reply, "TypeError", NAMES_EXPECTED),
        }
    }

    /// A CONNECT on a session that has had its own is answered by authenticating again; while that
    /// happens anyway, it changes nothing.
    fn connect_again(&mut self, turn: &mut Turn<'_>) {
        if !self.is_active() {
            return;
        }
        let Some(user) = &self.user else { return };
        turn.actions.push(Action::LogIn(user.cookie.clone()));
        self.outgoing.push(|out| out.extend_from_slice(socket_io::CONNECT));
        self.clear_from = None;
        self.phase = Phase::LoggingIn(Reply::Silent);
    }

    /// The client left: the session is over, and the client closes the transport.
    fn disconnect(&mut self, turn: &mut Turn<'_>) {
        self.end(CloseReason::ClientClosed, turn);
        self.clear_from = Some(turn.now + super::GRACE);
    }

    fn end(&mut self, reason: CloseReason, turn: &mut Turn<'_>) {
        turn.actions.push(Action::Leave);
        self.held = None;
        self.phase = Phase::Ended(reason);
        self.clear_from = None;
    }

    /// Says what has waited for its distance to the packet before.
    pub(super) fn advance(&mut self, turn: &mut Turn<'_>) {
        if self.clear_from.is_none_or(|at| turn.now < at) {
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

    fn authenticate(&mut self, answer: Result<Identity, LogInError>, turn: &mut Turn<'_>) {
        match answer {
            Ok(identity) => {
                self.outgoing.push(|out| socket_io::write_authenticated(out, identity.cookie.reveal()));
                self.phase = Phase::Active;
                self.release(turn);
            }
            Err(error) => {
                self.outgoing.push(|out| socket_io::write_not_authenticated(out, error.name(), error.message()));
                self.held = None;
                self.phase = Phase::Refused;
                self.clear_from = None;
            }
        }
    }
}

fn broken(turn: &mut Turn<'_>) {
    turn.actions.push(Action::Close(CloseReason::BrokenPacket));
}
