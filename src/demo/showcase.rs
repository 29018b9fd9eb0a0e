//! The demo's CouchDB: a few databases, one user, and somebody who writes all the time.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::couchdb::{Options, StandIn};
use super::global_changes::mix;

/// Who may log in to the demo.
pub const USER: &str = "demo";
/// The password of [`USER`].
pub const PASSWORD: &str = "demo";

const DATABASES: [&str; 5] = ["garden", "kitchen", "letters", "music/jazz", "orders+2026"];
const TICK: Duration = Duration::from_millis(500);
/// The writer pauses between this and twice this.
const PAUSE: Duration = Duration::from_millis(650);
/// One in so many turns creates or deletes the guest's database instead.
const GUEST_TURN: u64 = 12;

/// A running demo. Dropping it ends the writer and the stand-in.
#[derive(Debug)]
pub struct Demo {
    stand_in: Arc<StandIn>,
    stop: Option<Sender<()>>,
    writer: Option<JoinHandle<()>>,
}

impl Demo {
    /// The stand-in's URL with the admin's name and password.
    pub fn url(&self) -> String {
        self.stand_in.url()
    }

    /// The databases that are always there, all of them readable by [`USER`].
    pub fn databases(&self) -> &'static [&'static str] {
        &DATABASES
    }

    /// The stand-in itself.
    pub fn stand_in(&self) -> &StandIn {
        &self.stand_in
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Starts a stand-in with databases in which something happens about every second.
///
/// # Errors
/// When no port can be listened on, or a thread cannot be started.
pub fn start_demo() -> io::Result<Demo> {
    let stand_in = Arc::new(StandIn::start(&Options { tick: TICK, ..Options::default() })?);
    stand_in.add_user(USER, PASSWORD, &[]);
    for name in DATABASES {
        stand_in.create_database_for(name, &[USER]);
    }
    let (stop, stopped) = mpsc::channel();
    let of_writer = Arc::clone(&stand_in);
    let writer = thread::Builder::new().name("demo-writer".to_owned()).spawn(move || {
        let mut writer = Writer { stand_in: of_writer, dice: RandomState::new().hash_one(0), guest: None };
        while stopped.recv_timeout(writer.pause()) == Err(RecvTimeoutError::Timeout) {
            writer.take_turn();
        }
    })?;
    Ok(Demo { stand_in, stop: Some(stop), writer: Some(writer) })
}

/// Somebody who writes all the time.
struct Writer {
    stand_in: Arc<StandIn>,
    dice: u64,
    guest: Option<String>,
}

impl Writer {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = mix(self.dice);
        self.dice % sides
    }

    fn pause(&mut self) -> Duration {
        let percent = u32::try_from(self.roll(101)).unwrap_or(0);
        PAUSE + PAUSE * percent / 100
    }

    fn take_turn(&mut self) {
        if self.roll(GUEST_TURN) == 0 {
            if let Some(name) = self.guest.take() {
                self.stand_in.delete_database(&name);
            } else {
                let name = format!("guest-{}", 100 + self.roll(900));
                self.stand_in.create_database_for(&name, &[USER]);
                self.guest = Some(name);
            }
            return;
        }
        let place = usize::try_from(self.roll(DATABASES.len() as u64)).unwrap_or(0);
        self.stand_in.update(DATABASES[place]);
    }
}
