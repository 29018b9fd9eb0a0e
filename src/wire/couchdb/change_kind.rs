//! The kinds of change that CouchDB reports.

/// The kind of a change to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The database was created.
    Created,
    /// A document of the database was written.
    Updated,
    /// The database was deleted.
    Deleted,
}

impl ChangeKind {
    /// All kinds, in the order in which a position counts them.
    pub const ALL: [Self; 3] = [Self::Updated, Self::Created, Self::Deleted];

    /// Returns the index of the kind in [`Self::ALL`].
    pub fn index(self) -> usize {
        match self {
            Self::Updated => 0,
            Self::Created => 1,
            Self::Deleted => 2,
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "created" => Some(Self::Created),
            "updated" => Some(Self::Updated),
            "deleted" => Some(Self::Deleted),
            _ => None,
        }
    }

    /// Returns the name of the kind, in the ids of event documents and in notifications.
    pub fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }

    /// Returns the kind for a notification of several changes of one database.
    ///
    /// A creation or deletion says more than an update. If there are several of them, the later one
    /// counts. CouchDB reports the events of one tick in any order.
    #[must_use]
    pub fn merge(self, later: Self) -> Self {
        if later == Self::Updated { self } else { later }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_merge() {
        use ChangeKind::{Created, Deleted, Updated};
        assert_eq!(Created.merge(Updated), Created);
        assert_eq!(Updated.merge(Deleted), Deleted);
        assert_eq!(Created.merge(Deleted), Deleted);
        assert_eq!(Updated.merge(Updated), Updated);
    }
}
