//! Options and environment of the real binary.
