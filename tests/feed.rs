//! The changes feed: what breaks it, and that nothing behind the break is lost.
