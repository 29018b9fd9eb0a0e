//! A table of reusable slots (a generational arena): each value gets a new generation, so a key
//! that outlives its value finds nothing. After many values are removed, the table shrinks.

use std::collections::BTreeSet;

/// A slot and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Number of the slot; small numbers are used first.
    pub index: u32,
    /// Number of values that the slot held before.
    pub generation: u32,
}

/// Values by [`Key`].
#[derive(Debug)]
pub struct Table<T> {
    slots: Vec<Slot<T>>,
    /// Free slots, the last freed on top.
    free: Vec<u32>,
    /// Empty slots that must not be reused yet.
    reserved: BTreeSet<u32>,
    /// Generation of new slots, which no slot of the same number had before.
    first_generation: u32,
    /// Number of values below which the table shrinks.
    shrink_below: usize,
}

/// Number of slots below which the table is not shrunk.
const KEPT: usize = 64;

/// A place for one value.
#[derive(Debug)]
pub struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), reserved: BTreeSet::new(), first_generation: 0, shrink_below: 0 }
    }
}

impl<T> Table<T> {
    /// Stores a value in a free slot.
    pub fn insert(&mut self, value: T) -> Key {
        match self.try_insert_with(|_| Ok::<_, std::convert::Infallible>(value)) {
            Ok(key) => key,
            Err(never) => match never {},
        }
    }

    /// Stores a value in a free slot; `make` creates it with its key. Nothing changes if `make`
    /// fails.
    ///
    /// # Errors
    /// The error of `make`.
    pub fn try_insert_with<E>(&mut self, make: impl FnOnce(Key) -> Result<T, E>) -> Result<Key, E> {
        let index = self.free.last().copied().unwrap_or_else(|| {
            self.free.push(u32::try_from(self.slots.len()).expect("fewer slots than descriptors"));
            self.slots.push(Slot { generation: self.first_generation, value: None });
            self.shrink_below = self.slots.len() / 4;
            self.free[0]
        });
        let slot = &mut self.slots[index as usize];
        let key = Key { index, generation: slot.generation };
        slot.value = Some(make(key)?);
        self.free.pop();
        Ok(key)
    }

    /// Removes a value. Its key finds nothing from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let value = self.take(key)?;
        self.free(key.index);
        Some(value)
    }

    /// Removes a value and reserves its slot until [`Table::release`].
    pub fn remove_and_reserve(&mut self, key: Key) -> Option<T> {
        let value = self.take(key)?;
        self.reserved.insert(key.index);
        Some(value)
    }

    /// Makes a slot of [`Table::remove_and_reserve`] free.
    pub fn release(&mut self, index: u32) {
        if self.reserved.remove(&index) {
            self.free(index);
        }
    }

    fn take(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize).filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        Some(value)
    }

    fn free(&mut self, index: u32) {
        self.free.push(index);
        if self.len() <= self.shrink_below && self.slots.len() > KEPT {
            self.shrink();
        }
    }

    /// Drops the slots after the last value. If that one is far behind, the table shrinks again
    /// when half of the values are gone.
    fn shrink(&mut self) {
        let used = self.slots.iter().rposition(|slot| slot.value.is_some()).map_or(0, |last| last + 1);
        let used = used.max(self.reserved.last().map_or(0, |last| *last as usize + 1));
        let newest = self.slots[used..].iter().map(|slot| slot.generation).max();
        self.first_generation = self.first_generation.max(newest.unwrap_or(0));
        self.slots.truncate(used);
        self.slots.shrink_to_fit();
        self.free.retain(|index| (*index as usize) < used);
        self.free.shrink_to_fit();
        self.shrink_below = (self.len() / 2).min(self.slots.len() / 4);
    }

    /// Returns the value of a key, if it is still there.
    pub fn get(&self, key: Key) -> Option<&T> {
        self.slots.get(key.index as usize).filter(|slot| slot.generation == key.generation)?.value.as_ref()
    }

    /// Returns the value of a key, if it is still there.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slots.get_mut(key.index as usize).filter(|slot| slot.generation == key.generation)?.value.as_mut()
    }

    /// Returns the key of the value in a slot.
    pub fn key_at(&self, index: u32) -> Option<Key> {
        let slot = self.slots.get(index as usize)?;
        slot.value.as_ref().map(|_| Key { index, generation: slot.generation })
    }

    /// Returns the keys of all values, in the order of their slots.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        (0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX)).filter_map(|index| self.key_at(index))
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len() - self.reserved.len()
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_removed_value_finds_nothing() {
        let mut table = Table::default();
        let a = table.insert("a");
        let b = table.insert("b");
        assert_eq!(table.remove(a), Some("a"));
        assert_eq!((table.remove(a), table.get(a), table.len()), (None, None, 1));
        let c = table.insert("c");
        assert_eq!((c.index, c.generation), (a.index, a.generation + 1));
        assert_eq!((table.get(a), table.get(b), table.get(c)), (None, Some(&"b"), Some(&"c")));
        assert_eq!(table.keys().collect::<Vec<_>>(), [c, b]);
        assert_eq!(table.key_at(c.index), Some(c));
        assert_eq!(table.key_at(9), None);
    }

    #[test]
    fn a_reserved_slot_is_not_reused_until_its_release() {
        let mut table = Table::default();
        let keys: Vec<Key> = (0..200).map(|number| table.insert(number)).collect();
        assert_eq!(table.remove_and_reserve(keys[150]), Some(150));
        assert_eq!((table.get(keys[150]), table.key_at(150), table.len()), (None, None, 199));
        for key in &keys {
            table.remove(*key);
        }
        assert_eq!((table.len(), table.keys().count(), table.slots.len()), (0, 0, 151), "the reserved slot stays");
        let again: Vec<Key> = (0..160).map(|number| table.insert(number)).collect();
        assert!(again.iter().all(|key| key.index != 150));
        table.release(150);
        table.release(150);
        let last = table.insert(7);
        assert_eq!((last.index, table.get(keys[150]), table.get(last)), (150, None, Some(&7)));
    }

    #[test]
    fn the_table_shrinks_and_old_keys_stay_invalid() {
        let mut table = Table::default();
        let keys: Vec<Key> = (0..10_000).map(|number| table.insert(number)).collect();
        for key in &keys[1..] {
            assert!(table.remove(*key).is_some());
        }
        assert!(table.slots.capacity() < 200 && table.free.capacity() < 200, "{}", table.slots.capacity());
        let again: Vec<Key> = (0..10_000).map(|number| table.insert(number)).collect();
        assert!(keys[1..].iter().all(|key| table.get(*key).is_none()));
        assert_eq!((table.get(keys[0]), table.len()), (Some(&0), 10_001));
        // A value far behind keeps the slots in front of it.
        for key in &again[..9_999] {
            table.remove(*key);
        }
        assert_eq!((table.get(again[9_999]), table.len()), (Some(&9_999), 2));
        assert_eq!(table.keys().count(), 2);
    }
}
