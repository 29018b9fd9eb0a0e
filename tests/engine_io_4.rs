//! Engine.IO 4.
