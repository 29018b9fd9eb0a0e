//! Many clients, slow clients, clients that vanish.
