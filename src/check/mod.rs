//! The commands `check` and `healthcheck`. Both block, so the server uses none of this.
//!
//! | file | contents |
//! |---|---|
//! | `mod.rs` | `check`: files and ports |
//! | `couchdb.rs` | `check`: CouchDB, step by step |
//! | `report.rs` | the lines of its report |
//! | `health.rs` | `healthcheck` |
//! | `peer.rs` | one request and its response, over a connection of its own |
//!
//! Output holds no text of a peer except CouchDB's version, and no credentials.

mod couchdb;
mod health;
mod peer;
mod report;

use std::io::{self, Write};
use std::sync::Arc;

pub use health::health;

use report::{Failure, Report};

use crate::config::Config;
use crate::net::listener::Listener;
use crate::net::tls::{self, Identity};

/// Checks whether a server with this configuration would run, and prints a line for each step.
/// Returns whether all steps passed.
///
/// # Errors
/// Returns an error if the report cannot be written.
pub fn check(config: &Config, out: &mut dyn Write) -> io::Result<bool> {
    let mut report = Report::new(out);
    report.ok("configuration", "options and environment are valid")?;
    let trust = check_files(config, &mut report)?;
    check_ports(config, &mut report)?;
    match (&config.couchdb_url, trust) {
        (None, _) => report.ok("CouchDB", "--demo has its own")?,
        // The report has the fault of the file already.
        (Some(_), None) => {}
        (Some(url), Some(trust)) => couchdb::check(config, url, &trust, &mut report)?,
    }
    Ok(!report.has_failed())
}

/// Checks the files of the options. Returns the configuration of TLS to CouchDB if it is valid.
fn check_files(config: &Config, report: &mut Report<'_>) -> io::Result<Option<Arc<rustls::ClientConfig>>> {
    if let Some(files) = &config.tls {
        match Identity::load(&files.certificate, &files.key) {
            Ok(_) => report.ok("certificate", "--tls_cert and --tls_key are valid and match")?,
            Err(error) => report.failed("certificate", &Failure(error))?,
        }
    }
    match tls::couchdb_config(config.ca_file.as_deref()) {
        Ok(trust) => {
            if config.ca_file.is_some() {
                report.ok("trust", "--ca_file is valid")?;
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
            Ok(()) => report.ok(&step, "is free")?,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && shared => report.note(
                &step,
                "is in use by a program that does not share it: each instance needs --reuse_port, and the same user",
            )?,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                report.note(&step, "is in use: by the server itself if it runs already, else by another program")?;
            }
            Err(error) => {
                let advice = match error.kind() {
                    io::ErrorKind::PermissionDenied => "; ports below 1024 are for privileged users: use a higher one",
                    io::ErrorKind::AddrNotAvailable => "; --host must be an address of this machine",
                    _ => "",
                };
                report.failed(&step, &Failure(format!("cannot be opened: {error}{advice}")))?;
            }
        }
    }
    Ok(())
}
