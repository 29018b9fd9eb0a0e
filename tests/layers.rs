//! The sources themselves: imports point down.
