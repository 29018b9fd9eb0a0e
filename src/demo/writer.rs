//! The writer of the demo: changes a database about every second.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::databases::{Databases, SharedDatabases};

/// Shortest pause between two changes. The longest is twice as long.
const PAUSE: Duration = Duration::from_millis(650);
/// One of this many changes creates or deletes a guest's database. The others update a database.
const CHANGES_PER_GUEST: u64 = 12;

/// Changes the databases until the process ends.
pub(super) fn run(databases: &SharedDatabases, names: &[&str]) {
    let mut writer = Writer { random: RandomState::new(), steps: 0, guest: None };
    loop {
        databases.pause(writer.pause());
        databases.change(|databases| writer.change(databases, names));
    }
}

struct Writer {
    random: RandomState,
    /// How many random numbers were drawn.
    steps: u64,
    /// The guest's database, if there is one.
    guest: Option<String>,
}

impl Writer {
    /// Returns a random number below a limit.
    fn draw(&mut self, limit: u64) -> u64 {
        self.steps += 1;
        self.random.hash_one(self.steps) % limit
    }

    fn pause(&mut self) -> Duration {
        PAUSE + PAUSE * u32::try_from(self.draw(101)).unwrap_or(0) / 100
    }

    fn change(&mut self, databases: &mut Databases, names: &[&str]) {
        if self.draw(CHANGES_PER_GUEST) > 0 {
            let at = usize::try_from(self.draw(names.len() as u64)).unwrap_or(0);
            databases.update(names[at]);
        } else if let Some(name) = self.guest.take() {
            databases.delete(&name);
        } else {
            let name = format!("guest-{}", 100 + self.draw(900));
            databases.create(&name);
            self.guest = Some(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_updates_every_database_and_has_at_most_one_guest() {
        let mut databases = Databases::default();
        let mut writer = Writer { random: RandomState::new(), steps: 0, guest: None };
        for _ in 0..1_000 {
            writer.change(&mut databases, &["a", "b"]);
            assert!((PAUSE..=PAUSE * 2).contains(&writer.pause()));
        }
        let ids: Vec<_> = databases.events_since(0).iter().map(|(id, _)| (*id).to_owned()).collect();
        let count = |kind: &str| -> u64 {
            let ids = ids.iter().filter(|id| id.starts_with(kind));
            ids.map(|id| databases.event(id).unwrap().count).sum()
        };
        assert!(databases.event("updated:a").is_some() && databases.event("updated:b").is_some());
        assert!(count("deleted:") > 0 && count("created:") - count("deleted:") <= 1, "{ids:?}");
    }
}
