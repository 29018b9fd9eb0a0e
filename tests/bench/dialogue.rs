//! The messages of a client until it is subscribed, in each protocol.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::frames::masked;
use super::lines;

/// The protocol of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speech {
    /// `howler.v1`.
    Json,
    /// Socket.IO over a WebSocket, Engine.IO 4.
    SocketIo4,
    /// Socket.IO over a WebSocket, Engine.IO 3, as spoken by socket.io 2.
    SocketIo3,
    /// Socket.IO over polling, Engine.IO 3.
    Polling,
    /// The protocol of the yardstick.
    Bare,
}

/// The databases that a client subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subscribed {
    /// One database for all clients.
    Shared,
    /// One database for each client.
    Own,
    /// This number of databases.
    Many(usize),
}

/// Progress of a client towards its subscription.
#[derive(Default)]
pub struct Talk {
    stage: u8,
    sid: Box<str>,
}

/// The next step of a client after a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Wait,
    Send(Vec<u8>),
    /// The client is subscribed.
    Ready,
    /// The client is subscribed once these bytes are sent.
    SendAndReady(Vec<u8>),
    /// The message was a notification.
    Change,
    /// The message was unexpected.
    Wrong,
}

impl Subscribed {
    pub fn names(self, number: usize) -> Vec<String> {
        match self {
            Self::Shared => vec![lines::SHARED.to_owned()],
            Self::Own => vec![lines::own(number)],
            Self::Many(count) => (0..count).map(lines::one_of_many).collect(),
        }
    }
}

impl Speech {
    /// Returns whether each message is an HTTP response. Otherwise messages are WebSocket frames.
    pub fn polls(self) -> bool {
        self == Self::Polling
    }

    /// Returns whether an HTTP response precedes the first frame.
    pub fn upgrades(self) -> bool {
        matches!(self, Self::Json | Self::SocketIo3 | Self::SocketIo4)
    }

    /// Returns the first bytes that a client sends.
    pub fn opening(self, number: usize) -> Vec<u8> {
        let credentials = format!("username=user-{number:05}&password=zq7-{number:05}");
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let (target, fields) = match self {
            Self::Bare => return format!("{number}\n").into(),
            Self::Json => ("/howler".to_owned(), upgrade),
            Self::SocketIo3 => (format!("/socket.io/?EIO=3&transport=websocket&{credentials}"), upgrade),
            Self::SocketIo4 => (format!("/socket.io/?EIO=4&transport=websocket&{credentials}"), upgrade),
            Self::Polling => (format!("/socket.io/?EIO=3&transport=polling&{credentials}"), ""),
        };
        request("GET", &target, fields, "")
    }

    /// Returns the next step of a client after a message.
    pub fn hear(self, talk: &mut Talk, number: usize, subscribed: Subscribed, message: &[u8]) -> Step {
        match self {
            Self::Bare => hear_bare(talk, message),
            Self::Json => hear_json(talk, number, subscribed, message),
            Self::SocketIo3 | Self::SocketIo4 => {
                hear_socket_io(self == Self::SocketIo4, talk, number, subscribed, message)
            }
            Self::Polling => hear_polling(talk, number, subscribed, message),
        }
    }
}

fn request(method: &str, target: &str, fields: &str, body: &str) -> Vec<u8> {
    let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}{length}\r\n{body}").into()
}

fn hear_bare(talk: &mut Talk, message: &[u8]) -> Step {
    match std::mem::replace(&mut talk.stage, 1) {
        0 if message == b"ready" => Step::Ready,
        0 => Step::Wrong,
        _ => Step::Change,
    }
}

fn hear_json(talk: &mut Talk, number: usize, subscribed: Subscribed, message: &[u8]) -> Step {
    if message.starts_with(b"{\"event\":\"change\"") {
        return if talk.stage == 3 { Step::Change } else { Step::Wrong };
    }
    if talk.stage > 0 && message.starts_with(b"{\"event\":\"hello\"") {
        return Step::Wait; // the epoch became known meanwhile
    }
    let answer: Value = serde_json::from_slice(message).expect("the server sends JSON");
    talk.stage += 1;
    let (username, password) = (format!("user-{number:05}"), format!("zq7-{number:05}"));
    match talk.stage {
        1 if answer["event"] == "hello" => {
            let log_in = json!({"id": 1, "op": "log-in", "username": username, "password": password});
            Step::Send(masked(&log_in.to_string()))
        }
        2 if answer["ok"] == true => {
            let subscribe = json!({"id": 2, "op": "subscribe", "dbs": subscribed.names(number)});
            Step::Send(masked(&subscribe.to_string()))
        }
        3 if answer["ok"] == true => Step::Ready,
        _ => Step::Wrong,
    }
}

fn hear_socket_io(four: bool, talk: &mut Talk, number: usize, subscribed: Subscribed, message: &[u8]) -> Step {
    match message {
        b"2" => Step::Send(masked("3")),
        b"3" => Step::Wait,
        _ if message.starts_with(b"42[\"change\"") => Step::Change,
        _ if message.starts_with(b"0{") && four => Step::Send(masked("40")),
        _ if message.starts_with(b"0{") || message.starts_with(b"40") => Step::Wait,
        _ if message.starts_with(b"42[\"authenticated\"") => {
            let names = json!(["subscribe", subscribed.names(number)]);
            Step::Send(masked(&format!("421{names}")))
        }
        b"431[{}]" if talk.stage == 0 => {
            talk.stage = 1;
            Step::Ready
        }
        _ => Step::Wrong,
    }
}

fn hear_polling(talk: &mut Talk, number: usize, subscribed: Subscribed, body: &[u8]) -> Step {
    let body = String::from_utf8_lossy(body);
    if talk.stage == 0 {
        let Some((_, rest)) = body.split_once("\"sid\":\"") else { return Step::Wrong };
        talk.sid = rest.split('"').next().expect("split returns at least one item").into();
    }
    let target = format!("/socket.io/?EIO=3&transport=polling&sid={}", talk.sid);
    let poll = request("GET", &target, "", "");
    match talk.stage {
        1 if !body.contains("authenticated") => return Step::Send(poll),
        3 if !body.contains("431[{}]") => return Step::Wrong,
        _ => talk.stage += 1,
    }
    match talk.stage {
        2 => {
            let packet = format!("421{}", json!(["subscribe", subscribed.names(number)]));
            let body = format!("{}:{packet}", packet.len());
            Step::Send(request("POST", &target, "Content-Type: text/plain;charset=UTF-8\r\n", &body))
        }
        4 => Step::SendAndReady(poll), // which stays parked
        1 | 3 => Step::Send(poll),
        _ => Step::Wrong,
    }
}
