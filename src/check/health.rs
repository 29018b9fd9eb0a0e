//! `healthcheck`: whether the server with these options lives. For images that hold nothing but its binary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::peer::{Answer, Peer, PeerError, Until};
use crate::config::HealthPort;
use crate::net::tls;

/// Time for all of it but a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Asks `GET /healthz`; what to say of it.
///
/// # Errors
/// The server is not well, or not there.
pub fn health(asked: &HealthPort) -> Result<String, String> {
    let addresses: Vec<_> = places(asked.host).into_iter().map(|ip| SocketAddr::new(ip, asked.port)).collect();
    let place = addresses[0];
    let unhealthy = |problem: &str| format!("unhealthy: {place}: {problem}");
    let tls = asked.certificate.as_ref().map(|file| {
        let config = tls::pinned_config(file)?;
        // Any name will do: what is shown is known byte by byte.
        Ok::<_, String>((config, place.ip().into()))
    });
    let tls = tls.transpose().map_err(|error| unhealthy(&error))?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n");
    match (Peer { addresses, tls }).ask(request.into_bytes(), Until::End, ANSWER_WITHIN) {
        Ok(Answer { status: 200, body, .. }) if body == b"ok\n" => Ok(format!("healthy: {place}")),
        Ok(Answer { status, .. }) => Err(unhealthy(&format!("what answers there (status {status}) is another server"))),
        Err(PeerError::Connect(_, error)) => Err(unhealthy(&format!("no connection: {error}"))),
        Err(PeerError::Tls(problem)) => Err(unhealthy(&problem)),
        Err(PeerError::Silent | PeerError::Withheld) => Err(unhealthy("no answer in time")),
        Err(PeerError::Closed) => Err(unhealthy("the connection ended without an answer")),
        Err(PeerError::SpeaksTls | PeerError::NotHttp) => Err(unhealthy("plain HTTP is not spoken there")),
    }
}

/// Where a server that listens on this address is asked from its own machine.
fn places(host: Option<IpAddr>) -> Vec<IpAddr> {
    match host {
        Some(host) if !host.is_unspecified() => vec![host],
        Some(IpAddr::V4(_)) => vec![Ipv4Addr::LOCALHOST.into()],
        // All addresses of IPv6 are those of IPv4, too, but where the system keeps them apart.
        _ => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    }
}
