//! Errors that a `subscribe` may get.

/// Name of the error of a request beyond a limit.
pub(crate) const LIMIT_ERROR: &str = "LimitError";
/// Name of the error when CouchDB does not answer.
pub(crate) const UNAVAILABLE: &str = "ServiceUnavailableError";
/// Text when CouchDB could not say who may read a database.
pub(crate) const UNDECIDED: &str = "The database server cannot be asked at the moment who may read this.";
/// Text when too many databases of the user wait for that.
pub(crate) const TOO_MANY_UNDECIDED: &str = "too many databases of this user wait until it is known who may read them";
/// Text when there is no memory.
pub(crate) const OUT_OF_MEMORY: &str = "The server uses too much memory at the moment.";

/// Returns the text about too many subscriptions of a user.
pub(crate) fn too_many_of_user(most: usize) -> String {
    format!("a user may have {most} subscriptions over all sessions and no more")
}

/// Returns the text about too many subscriptions of a client.
pub(crate) fn too_many(most: usize) -> String {
    format!("a client may have {most} subscriptions and no more")
}

/// Returns the text about a name that is too long.
pub(crate) fn too_long(most: usize) -> String {
    format!("a database name is longer than {most} bytes")
}
