//! State machines and tables. They know no sockets and no clock: time and randomness are arguments,
//! and actions are returned.
//!
//! | subject | modules |
//! |---|---|
//! | changes feed | [`feed`], [`merge_window`], [`restarts`], [`resync`] |
//! | requests | [`pool`], [`dialer`], [`admin_access`], [`forwarded_for`], [`url_file`] |
//! | databases | [`subscriptions`], [`positions`], [`tracked_position`], [`catch_up`] |
//! | access control | [`access`], [`security_memory`] |
//! | clients | [`routes`], [`session`], [`name_lists`], [`session_cleanup`], [`drain`] |
//! | pages and proxies | [`static_assets`], [`trusted_proxies`] |
//! | limits | [`limits`], [`address_limit`], [`sessions_per_connection`], [`user_quotas`] |
//! | unauthenticated clients | [`unauthenticated`], [`login_limits`] |
//! | operators | [`monitoring`], [`metrics`], [`log_throttle`] |
//! | tables and queues | [`table`], [`fair_queue`], [`small_list`] |
//! | time and addresses | [`timers`], [`pacing`], [`jitter`], [`network`] |

pub mod access;
pub mod address_limit;
pub mod admin_access;
pub mod catch_up;
pub mod dialer;
pub mod drain;
pub mod fair_queue;
pub mod feed;
pub mod forwarded_for;
pub mod jitter;
pub mod limits;
pub mod log_throttle;
pub mod login_limits;
pub mod merge_window;
pub mod metrics;
pub mod monitoring;
pub mod name_lists;
pub mod network;
pub mod pacing;
pub mod pool;
pub mod positions;
pub mod restarts;
pub mod resync;
pub mod routes;
pub mod security_memory;
pub mod session;
pub mod session_cleanup;
pub mod sessions_per_connection;
pub mod small_list;
pub mod static_assets;
pub mod subscriptions;
pub mod table;
pub mod timers;
pub mod tracked_position;
pub mod trusted_proxies;
pub mod unauthenticated;
pub mod url_file;
pub mod user_quotas;
