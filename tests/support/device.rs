//! A client of `howler.v1` that behaves like an app: it keeps the epoch and the position of each of
//! its databases across connections, and reports which databases changed.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Received, frame};
use super::{PASSWORD, SOON, USER};

/// An app's side of a session, and the state that it keeps between sessions.
pub struct Device {
    /// Its databases, each with the last position that it received.
    pub known: BTreeMap<String, Option<String>>,
    pub epoch: Option<String>,
    /// How often every database counted as changed.
    pub resyncs: u64,
    /// Whether it subscribes again after a resync, for positions that outlast what was lost.
    pub compares_again: bool,
    cookie: Option<String>,
    client: Option<Client>,
}

/// The notification in a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    Nothing,
    Change(String),
    /// Every one of its databases counts as changed.
    Everything,
}

/// The connection ended or could not be opened; holds what was received instead.
#[derive(Debug)]
pub struct Gone(pub String);

#[derive(Deserialize)]
struct Message<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    #[serde(borrow)]
    db: Option<Cow<'a, str>>,
    position: Option<String>,
    epoch: Option<String>,
    cookie: Option<String>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
    dbs: Option<HashMap<String, Option<String>>>,
    changed: Option<Vec<String>>,
}

impl Device {
    /// Returns an app that knows no positions yet.
    pub fn new(databases: impl IntoIterator<Item = String>) -> Self {
        let known = databases.into_iter().map(|name| (name, None)).collect();
        Self { known, epoch: None, resyncs: 0, compares_again: true, cookie: None, client: None }
    }

    /// Drops the connection without closing it. Notifications that it did not read are lost.
    pub fn leave(&mut self) {
        self.client = None;
    }

    /// Connects and sends a login: with the cookie of the last session, or with the password.
    pub fn begin_login(&mut self, address: SocketAddr) -> Result<(), Gone> {
        self.client = Some(Client::try_open(address, "/howler", "").map_err(Gone)?);
        let request = match &self.cookie {
            Some(cookie) => json!({"id": 1, "op": "log-in", "cookie": cookie}),
            None => json!({"id": 1, "op": "log-in", "username": USER, "password": PASSWORD}),
        };
        self.send(&request)
    }

    /// Reads the response to the login.
    pub fn finish_login(&mut self) -> Result<(), Gone> {
        loop {
            let text = self.receive_answer()?;
            let message = parse(&text);
            if message.event.as_deref() == Some("hello") {
                self.take_epoch(message.epoch);
            } else if message.id == Some(1) {
                if message.error.is_some() {
                    self.cookie = None;
                    return Err(Gone(text));
                }
                self.cookie = message.cookie;
                return Ok(());
            } else {
                return Err(Gone(text));
            }
        }
    }

    /// Subscribes to all of its databases. Returns those that count as changed.
    pub fn subscribe(&mut self) -> Result<Vec<String>, Gone> {
        let (changed, mut is_resync) = self.subscribe_once()?;
        if !is_resync {
            return Ok(changed);
        }
        while is_resync && self.compares_again {
            // The response may be from before the resync that came meanwhile.
            (_, is_resync) = self.subscribe_once()?;
        }
        Ok(self.known.keys().cloned().collect())
    }

    fn subscribe_once(&mut self) -> Result<(Vec<String>, bool), Gone> {
        self.send(&json!({"id": 2, "op": "subscribe", "dbs": self.known, "epoch": self.epoch}))?;
        let mut everything = false;
        loop {
            let text = self.receive_answer()?;
            let message = parse(&text);
            if message.id != Some(2) {
                everything |= self.take(message) == Notice::Everything;
                continue;
            }
            let (Some(positions), Some(mut changed)) = (message.dbs, message.changed) else { return Err(Gone(text)) };
            self.take_epoch(message.epoch);
            for (name, position) in positions {
                let known = self.known.get_mut(&name).expect("one of its own");
                if known.is_none() {
                    // It knows no position of this database, so it has to read the database.
                    changed.push(name);
                }
                if position.is_some() {
                    *known = position;
                }
            }
            return Ok((changed, everything));
        }
    }

    /// Connects, logs in and subscribes.
    pub fn come_back(&mut self, address: SocketAddr) -> Result<Vec<String>, Gone> {
        self.begin_login(address)?;
        self.finish_login()?;
        self.subscribe()
    }

    /// Reads the next message, if one arrives in time.
    pub fn next(&mut self, within: Duration) -> Result<Notice, Gone> {
        let Some(text) = self.receive(within)? else { return Ok(Notice::Nothing) };
        let changed = self.take(parse(&text));
        if changed == Notice::Everything && self.compares_again {
            self.subscribe()?;
        }
        Ok(changed)
    }

    /// Reads everything before the response to a request of its own, and returns the databases that
    /// changed.
    pub fn take_all(&mut self, changed: &mut Vec<String>) -> Result<(), Gone> {
        self.send(&json!({"id": 3, "op": "heartbeat"}))?;
        loop {
            let text = self.receive_answer()?;
            let message = parse(&text);
            if message.id == Some(3) {
                return Ok(());
            }
            match self.take(message) {
                Notice::Nothing => {}
                Notice::Change(name) => changed.push(name),
                Notice::Everything => changed.extend(self.known.keys().cloned()),
            }
        }
    }

    /// Discards the next notification as if it were lost, and returns its database.
    pub fn drop_next_change(&mut self, within: Duration) -> Result<Option<String>, Gone> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(text) = self.receive(left)? else { return Ok(None) };
            let message = parse(&text);
            if let (Some("change"), Some(name)) = (message.event.as_deref(), message.db) {
                return Ok(Some(name.into_owned()));
            }
        }
    }

    fn take(&mut self, message: Message<'_>) -> Notice {
        let changed = self.apply(message);
        self.resyncs += u64::from(changed == Notice::Everything);
        changed
    }

    fn apply(&mut self, message: Message<'_>) -> Notice {
        match (message.event.as_deref(), message.db) {
            (Some("change"), Some(name)) => {
                let known = self.known.get_mut(&*name).expect("one of its own");
                if message.position.is_some() {
                    *known = message.position;
                }
                Notice::Change(name.into_owned())
            }
            (Some("resync"), _) => Notice::Everything,
            (Some("hello"), _) if self.take_epoch(message.epoch) => Notice::Everything,
            (Some("session"), _) => {
                self.cookie = message.cookie;
                Notice::Nothing
            }
            _ => Notice::Nothing,
        }
    }

    /// Takes note of an epoch, and returns whether it differs: positions of another epoch mean
    /// nothing.
    fn take_epoch(&mut self, epoch: Option<String>) -> bool {
        let other = epoch.is_some() && self.epoch.is_some() && epoch != self.epoch;
        if other {
            self.known.values_mut().for_each(|known| *known = None);
        }
        self.epoch = epoch.or_else(|| self.epoch.take());
        other
    }

    fn send(&mut self, request: &Value) -> Result<(), Gone> {
        let client = self.client.as_mut().ok_or_else(|| Gone("not connected".to_owned()))?;
        client.send_raw(&frame(0x81, request.to_string().as_bytes())).map_err(|error| Gone(error.to_string()))
    }

    fn receive_answer(&mut self) -> Result<String, Gone> {
        self.receive(2 * SOON)?.ok_or_else(|| Gone("no answer".to_owned()))
    }

    fn receive(&mut self, within: Duration) -> Result<Option<String>, Gone> {
        let client = self.client.as_mut().ok_or_else(|| Gone("not connected".to_owned()))?;
        loop {
            match client.receive(within) {
                Received::Text(text) => return Ok(Some(text)),
                Received::Nothing => return Ok(None),
                Received::Ping => drop(client.send_raw(&frame(0x8a, b""))),
                Received::Pong(_) => {}
                end @ (Received::Close(..) | Received::End) => return Err(Gone(format!("{end:?}"))),
            }
        }
    }
}

fn parse(text: &str) -> Message<'_> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("the server sends JSON ({error}): {text}"))
}
