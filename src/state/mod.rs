//! Machines and tables. None knows a socket; the time is an argument, randomness is handed in, and what
//! is to be done is returned.

pub mod access;
pub mod addresses;
pub mod admin_access;
pub mod catch_up;
pub mod dialer;
pub mod drain;
pub mod fair_queue;
pub mod feed;
pub mod few;
pub mod forwarding;
mod interests;
pub mod jitter;
pub mod limits;
pub mod log_throttle;
pub mod login_limits;
pub mod merge_window;
pub mod metrics;
pub mod operation;
pub mod pace;
pub mod pool;
pub mod positions;
pub mod proxies;
pub mod restarts;
pub mod resync;
pub mod routes;
pub mod security_memory;
pub mod session;
pub mod site;
pub mod subscriptions;
pub mod table;
pub mod timers;
pub mod unauthenticated;
pub mod url_file;
pub mod user_totals;
pub mod watch;
