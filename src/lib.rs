//! couchdb-howler
