//! `healthcheck`: checks the health of the running server with these options, for images that hold
//! only its binary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::peer::{Answer, Peer, PeerError, Until};
use crate::config::HealthPort;
use crate::net::tls;

/// Time for the whole check, but for one second.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Requests `GET /healthz`. Returns a line to print.
///
/// # Errors
/// Returns a line to print if the server is unhealthy or absent.
pub fn health(asked: &HealthPort) -> Result<String, String> {
    let addresses: Vec<_> = addresses_of(asked.host).into_iter().map(|ip| SocketAddr::new(ip, asked.port)).collect();
    let place = addresses[0];
    let unhealthy = |problem: &str| format!("unhealthy: {place}: {problem}");
    let tls = asked.certificate.as_ref().map(|file| {
        let config = tls::pinned_config(file)?;
        // Any name will do, since the certificate is compared byte by byte.
        Ok::<_, String>((config, place.ip().into()))
    });
    let tls = tls.transpose().map_err(|error| unhealthy(&error))?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n");
    match (Peer { addresses, tls }).ask(request.into_bytes(), Until::End, ANSWER_WITHIN) {
        Ok(Answer { status: 200, body, .. }) if body == b"ok\n" => Ok(format!("healthy: {place}")),
        Ok(Answer { status, .. }) => Err(unhealthy(&format!("the port belongs to another server (status {status})"))),
        Err(PeerError::Connect(_, error)) => Err(unhealthy(&format!("no connection: {error}"))),
        Err(PeerError::Tls(problem)) => Err(unhealthy(&problem)),
        Err(PeerError::Silent | PeerError::Withheld) => Err(unhealthy("no answer in time")),
        Err(PeerError::Closed) => Err(unhealthy("the connection ended without an answer")),
        Err(PeerError::SpeaksTls | PeerError::NotHttp) => Err(unhealthy("the port does not speak plain HTTP")),
    }
}

/// Returns the addresses at which the machine itself reaches a server that listens on this one.
fn addresses_of(host: Option<IpAddr>) -> Vec<IpAddr> {
    match host {
        Some(host) if !host.is_unspecified() => vec![host],
        Some(IpAddr::V4(_)) => vec![Ipv4Addr::LOCALHOST.into()],
        // The IPv6 wildcard includes IPv4, unless the system separates them.
        _ => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    }
}
