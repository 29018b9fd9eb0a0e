//! A list that needs no memory of its own for a single value.

use std::ops::{Deref, DerefMut};

/// A list, which dereferences to a slice.
#[derive(Clone, Debug, Default)]
pub enum SmallList<T> {
    /// The list is empty.
    #[default]
    None,
    /// The list has one value.
    One(T),
    /// The list has, or had, several values.
    Many(Vec<T>),
}

impl<T> SmallList<T> {
    /// Appends a value.
    pub fn push(&mut self, value: T) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(value),
            Self::One(first) => Self::Many(vec![first, value]),
            Self::Many(mut values) => {
                values.push(value);
                Self::Many(values)
            }
        };
    }

    /// Removes a value and moves the last one to its place. An empty list frees its memory.
    ///
    /// # Panics
    /// If there is no value at the index.
    pub fn swap_remove(&mut self, index: usize) -> T {
        let removed = match self {
            Self::Many(values) => values.swap_remove(index),
            _ => match std::mem::take(self) {
                Self::One(value) if index == 0 => value,
                _ => panic!("no value at index {index}"),
            },
        };
        if self.is_empty() {
            *self = Self::None;
        }
        removed
    }
}

impl<T> Deref for SmallList<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::None => &[],
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

impl<T> DerefMut for SmallList<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::None => &mut [],
            Self::One(value) => std::slice::from_mut(value),
            Self::Many(values) => values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_vector() {
        let (mut few, mut vector) = (SmallList::default(), Vec::new());
        for (step, number) in [7_usize, 0, 3, 9, 1, 4, 4, 2, 8, 5, 6, 0, 1, 1, 2].into_iter().enumerate() {
            if number % 3 == 0 && !vector.is_empty() {
                let index = step % vector.len();
                assert_eq!(few.swap_remove(index), vector.swap_remove(index));
            } else {
                few.push(number);
                vector.push(number);
            }
            assert_eq!((&*few, few.get(1)), (&*vector, vector.get(1)));
        }
        while !vector.is_empty() {
            assert_eq!(few.swap_remove(0), vector.swap_remove(0));
        }
        assert!(matches!(few, SmallList::None));
        assert_eq!(size_of::<SmallList<u64>>(), size_of::<Vec<u64>>());
    }
}
