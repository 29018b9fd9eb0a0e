//! The static build, alone in an empty root folder.
