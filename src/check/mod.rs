//! The commands that ask and end: `check`, whether this configuration will do, and `healthcheck`, whether the server
//! that has it lives. Both may wait, so none of this is used by the server.
//!
//! | file | what is in it |
//! |---|---|
//! | `mod.rs` | `check`: its report, files and ports |
//! | `couchdb.rs` | `check`: CouchDB, step by step |
//! | `health.rs` | `healthcheck` |
//! | `conversation.rs` | one request and its answer, over a connection of its own |
//!
//! Nothing that a peer sends is printed but CouchDB's version, and no credential at all.

mod conversation;
mod couchdb;
mod health;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

pub use health::health;

use crate::config::Config;
use crate::net::listener::Listener;
use crate::net::tls::{self, Identity};

/// Checks whether a server with this configuration will work, and prints a line for each step. Whether all is well.
///
/// # Errors
/// The report cannot be written.
pub fn check(config: &Config, out: &mut dyn Write) -> io::Result<bool> {
    let mut report = Report { out, failed: false };
    report.ok("configuration", "options and environment can be used")?;
    let trust = check_files(config, &mut report)?;
    check_ports(config, &mut report)?;
    match (&config.couchdb_url, trust) {
        (None, _) => report.ok("CouchDB", "--demo brings its own")?,
        // What to trust is not known: that was said.
        (Some(_), None) => {}
        (Some(url), Some(trust)) => couchdb::check(config, url, &trust, &mut report)?,
    }
    Ok(!report.failed)
}

/// What is printed.
struct Report<'a> {
    out: &'a mut dyn Write,
    failed: bool,
}

/// Why a step failed, and what to do about it.
struct Failure(String);

impl Report<'_> {
    fn ok(&mut self, step: &str, detail: &str) -> io::Result<()> {
        self.line("ok    ", step, detail)
    }

    /// Something that an operator may want to know.
    fn note(&mut self, step: &str, detail: &str) -> io::Result<()> {
        self.line("note  ", step, detail)
    }

    fn failed(&mut self, step: &str, failure: &Failure) -> io::Result<()> {
        self.failed = true;
        self.line("FAILED", step, &failure.0)
    }

    fn line(&mut self, verdict: &str, step: &str, detail: &str) -> io::Result<()> {
        writeln!(self.out, "{verdict}  {step}: {}", detail.replace(char::is_control, " "))?;
        // The next step may take seconds.
        self.out.flush()
    }
}

/// The files that are named; what CouchDB is to be trusted by, where they say.
fn check_files(config: &Config, report: &mut Report<'_>) -> io::Result<Option<Arc<rustls::ClientConfig>>> {
    if let Some(files) = &config.tls {
        match Identity::load(&files.certificate, &files.key) {
            Ok(_) => report.ok("certificate", "--tls_cert and --tls_key can be read and belong together")?,
            Err(error) => report.failed("certificate", &Failure(error))?,
        }
    }
    match tls::couchdb_config(config.ca_file.as_deref()) {
        Ok(trust) => {
            if config.ca_file.is_some() {
                report.ok("trust", "--ca_file can be read")?;
            }
            Ok(Some(trust))
        }
        Err(error) => report.failed("trust", &Failure(error)).map(|()| None),
    }
}

fn check_ports(config: &Config, report: &mut Report<'_>) -> io::Result<()> {
    let shared = config.reuse_port;
    let ports = [
        ("--port", Some(config.port), shared),
        ("--tls_port", config.tls_port, shared),
        ("--admin_port", config.admin_port, false),
    ];
    for (option, port, shared) in ports.into_iter().filter_map(|(option, port, shared)| Some((option, port?, shared))) {
        let step = format!("{option} {port}");
        let tried =
            if shared { Listener::try_shared(config.host, port) } else { Listener::bind(config.host, port).map(drop) };
        match tried {
            Ok(()) => report.ok(&step, "can be listened on")?,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && shared => report.note(
                &step,
                "is taken at the moment by a program that does not share it: each instance needs --reuse_port, and the same user",
            )?,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => report.note(
                &step,
                "is taken at the moment: by the server itself if it runs already, else by a program that is in its way",
            )?,
            Err(error) => {
                let advice = match error.kind() {
                    io::ErrorKind::PermissionDenied => "; ports below 1024 are for privileged users: take a higher one",
                    io::ErrorKind::AddrNotAvailable => "; --host must be an address of this machine",
                    _ => "",
                };
                report.failed(&step, &Failure(format!("cannot be listened on: {error}{advice}")))?;
            }
        }
    }
    Ok(())
}

/// What `work` comes to, unless it takes too long. It is not waited for then: the process ends soon.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = channel();
    let thread = std::thread::Builder::new().name("check".to_owned());
    thread.spawn(move || drop(done.send(work()))).ok()?;
    result.recv_timeout(limit).ok()
}
