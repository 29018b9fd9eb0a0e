//! Clients from the registries, against the real binary.
