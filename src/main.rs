//! couchdb-howler: reads the command line and the environment, and runs the server.
//!
//! Exit codes: 0 for a shutdown or a check without a fault, 1 if the server cannot start or its
//! loop fails or a check finds a fault, 2 for wrong usage.

use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use mio::net::TcpListener;

use couchdb_howler::check;
use couchdb_howler::config::{self, Command, Config, HealthPort};
use couchdb_howler::demo::{self, Demo};
use couchdb_howler::event_loop::{self, Signals};
use couchdb_howler::logging;
use couchdb_howler::net::descriptors;
use couchdb_howler::net::listener::Listener;
use couchdb_howler::net::tls::{self, Identity};
use couchdb_howler::server::{Listeners, Server, Settings, UPSTREAMS};
use couchdb_howler::state::feed::FeedSettings;
use couchdb_howler::state::session::Rules;
use couchdb_howler::state::static_assets::{Console, DemoAccount, StaticAssets};
use couchdb_howler::systemd::{self, Notifier};
use couchdb_howler::wire::url::CouchUrl;

const CANNOT_START: u8 = 1;
const CHECK_FAILED: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1);
    let command = config::read(args, &|name| std::env::var_os(name), &|path| std::fs::read_to_string(path));
    match command {
        Ok(Command::Help) => print(&config::help()),
        Ok(Command::Version) => print(&format!("{}\n", config::version())),
        Ok(Command::Completions(shell)) => print(&config::completions(shell)),
        Ok(Command::Man) => print(&config::man()),
        Ok(Command::Run(config)) => run_to_end(&config),
        Ok(Command::Check(config)) => check(&config),
        Ok(Command::HealthCheck(port)) => health_check(&port),
        Err(error) => {
            logging::print_error(&error.to_string());
            ExitCode::from(USAGE)
        }
    }
}

/// Runs the server. Returns when all lines of the log are written, unless nobody reads them.
fn run_to_end(config: &Config) -> ExitCode {
    match run(config) {
        Ok(()) => {
            logging::flush();
            ExitCode::SUCCESS
        }
        Err(error) => {
            logging::print_error(&error);
            ExitCode::from(CANNOT_START)
        }
    }
}

/// Prints a text to a reader that may have gone.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn check(config: &Config) -> ExitCode {
    match check::check(config, &mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        // An error means that the reader is gone, so the result is unknown.
        Ok(false) | Err(_) => ExitCode::from(CHECK_FAILED),
    }
}

fn health_check(port: &HealthPort) -> ExitCode {
    let health = check::health(port);
    let (Ok(said) | Err(said)) = &health;
    print(&format!("{said}\n"));
    if health.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(CHECK_FAILED) }
}

fn run(config: &Config) -> Result<(), String> {
    logging::start(config.log_level, config.log_format)
        .map_err(|error| format!("the log cannot be started: {error}"))?;
    let Ports { listeners, clients: addresses, admin } = open_ports(config)?;
    let demo = if config.demo {
        Some(Demo::start().map_err(|error| format!("the CouchDB of the demo cannot be started: {error}"))?)
    } else {
        None
    };
    let couchdb_url = match &demo {
        Some(demo) => CouchUrl::parse(&demo.url()).expect("the demo has a valid URL"),
        None => config.couchdb_url.clone().expect("a URL is required without --demo"),
    };
    let signals = catch_signals().map_err(|error| format!("signals cannot be caught: {error}"))?;
    let poll = mio::Poll::new().map_err(|error| format!("the poll cannot be created: {error}"))?;
    let registry = poll.registry().try_clone().map_err(|error| format!("the poll cannot be created: {error}"))?;
    let couchdb = couchdb_url.to_string();
    let mut settings = settings(config, couchdb_url, demo.as_ref())?;
    let room = limit_connections(&mut settings);
    let server =
        Server::new(settings, listeners, registry).map_err(|error| format!("the server cannot start: {error}"))?;
    let listens = addresses.iter().map(|(address, scheme)| format!("{address} ({scheme})")).collect::<Vec<_>>();
    let listens = listens.join(" and ");
    let apart = admin.map_or_else(String::new, |at| format!("; health and metrics are on {at}"));
    log::info!("couchdb-howler {} listens on {listens}{apart}; CouchDB is at {couchdb}.", config::version());
    log::info!("{room}");
    if config.reuse_port && admin.is_none() {
        log::warn!("--reuse_port without --admin_port: health and metrics on --port are those of any instance.");
    }
    if let (Some(demo), [(address, scheme), ..]) = (&demo, &*addresses) {
        logging::print_within(std::io::stdout(), &demo_instructions(demo, *address, scheme, !config.no_console));
    }
    let notifier = Notifier::new(&|name| std::env::var_os(name), std::process::id());
    event_loop::run(server, poll, signals, notifier).map_err(|error| format!("the event loop failed: {error}"))?;
    log::info!("Stopped.");
    Ok(())
}

/// Limits the number of clients to that of descriptors. Returns a line for the log.
fn limit_connections(settings: &mut Settings) -> String {
    let asked = settings.limits.connections;
    let Some(limit) = descriptors::raise_limit() else {
        return asked.map_or_else(
            || "Neither descriptors (RLIMIT_NOFILE) nor clients are limited.".to_owned(),
            |asked| format!("Descriptors (RLIMIT_NOFILE) are not limited; at most {asked} clients are accepted."),
        );
    };
    let room = descriptors::room(limit, settings.login_concurrency + UPSTREAMS);
    settings.limits.connections = Some(asked.map_or(room, |asked| asked.min(room)));
    match asked {
        Some(asked) if asked > room => {
            log::warn!(
                "--max_connections is {asked}, but {limit} descriptors (RLIMIT_NOFILE) suffice for {room} clients."
            );
            format!("At most {room} clients are accepted.")
        }
        Some(asked) => {
            format!("{limit} descriptors (RLIMIT_NOFILE) suffice for {room} clients; at most {asked} are accepted.")
        }
        None => format!("{limit} descriptors (RLIMIT_NOFILE) suffice for {room} clients."),
    }
}

/// The address of a port, and the scheme of its URLs.
type Place = (SocketAddr, &'static str);

/// The open ports.
struct Ports {
    listeners: Listeners,
    /// Ports for clients, the plain one first.
    clients: Vec<Place>,
    admin: Option<SocketAddr>,
}

/// Opens the configured ports, or takes the sockets of systemd.
fn open_ports(config: &Config) -> Result<Ports, String> {
    let identity = config.tls.as_ref().map(|files| Identity::load(&files.certificate, &files.key)).transpose()?;
    let only_tls = identity.is_some() && config.tls_port.is_none();
    let handed = systemd::take_sockets(&|name| std::env::var_os(name), only_tls)?;
    let (plain, secure) = if only_tls { (None, Some(config.port)) } else { (Some(config.port), config.tls_port) };
    let (plain_address, plain) = listen(config, handed.http, plain, config.reuse_port)?.unzip();
    let (tls_address, tls) = listen(config, handed.https, secure, config.reuse_port)?.unzip();
    // Never shared: a health check of one instance must not reach another one.
    let (admin, admin_listener) = listen(config, handed.admin, config.admin_port, false)?.unzip();
    let tls = match (tls, identity) {
        (Some(listener), Some(identity)) => Some((listener, identity)),
        (Some(_), None) => {
            return Err("systemd passes a socket for HTTPS (LISTEN_FDS), but --tls_cert is missing".to_owned());
        }
        (None, _) => None,
    };
    let places = [(plain_address, "http"), (tls_address, "https")];
    let clients = places.into_iter().filter_map(|(address, scheme)| Some((address?, scheme))).collect();
    Ok(Ports { listeners: Listeners::new(plain, tls).with_admin(admin_listener), clients, admin })
}

/// Listens on a socket of systemd, or else on a port if there is one.
fn listen(
    config: &Config,
    handed: Option<TcpListener>,
    port: Option<u16>,
    shared: bool,
) -> Result<Option<(SocketAddr, Listener)>, String> {
    let listener = match (handed, port) {
        (Some(socket), _) => Ok(Listener::adopt(socket)),
        (None, Some(port)) if shared => Listener::bind_shared(config.host, port),
        (None, Some(port)) => Listener::bind(config.host, port),
        (None, None) => return Ok(None),
    };
    let bound = listener.and_then(|listener| Ok(Some((listener.address()?, listener))));
    bound.map_err(|error| {
        let port = port.map_or_else(|| "a socket".to_owned(), |port| format!("port {port}"));
        let host = config.host.map_or_else(|| "all addresses".to_owned(), |host| host.to_string());
        let advice = match error.kind() {
            ErrorKind::AddrInUse if shared => {
                "; another program uses the port and does not share it: each instance needs --reuse_port, and the same user"
            }
            ErrorKind::AddrInUse if config.reuse_port => "; --admin_port is not shared: each instance needs its own",
            _ => "",
        };
        format!("cannot listen on {port} of {host}: {error}{advice}")
    })
}

fn settings(config: &Config, couchdb_url: CouchUrl, demo: Option<&Demo>) -> Result<Settings, String> {
    // Read the file even if it is not needed, so that a fault in it shows at once.
    let needed = couchdb_url.tls || config.ca_file.is_some();
    let tls = needed.then(|| tls::couchdb_config(config.ca_file.as_deref())).transpose()?;
    let mut seed = [0; 8];
    tls::random_bytes(&mut seed)?;
    Ok(Settings {
        couchdb_url,
        couchdb_url_file: config.couchdb_url_file.clone(),
        feed: FeedSettings {
            source: config.feed,
            heartbeat: config.feed_heartbeat_ms,
            create: config.create_global_changes,
        },
        tls,
        rules: Rules {
            ping_interval: config.ping_interval_ms,
            ping_timeout: config.ping_timeout_ms,
            login_timeout: config.limits.login_timeout,
            messages_per_second: config.limits.messages_per_second,
            requests: config.limits.requests,
            max_payload: config.limits.post,
            max_message: config.limits.message,
        },
        origins: config.origins.clone(),
        trusts_forwarded: config.trusts_forwarded,
        login_concurrency: config.login_concurrency,
        resync: config.resync,
        merge_window: config.merge_window_ms,
        limits: config.limits.clone(),
        catch_up_for: config.catch_up_sessions_s * 1_000,
        access: config.access,
        trusted_proxies: config.trusted_proxies.clone(),
        cookie_same_site: config.cookie_same_site,
        session_check: config.session_check_s * 1_000,
        drain_within: config.drain_timeout_s * 1_000,
        site: StaticAssets::new(console(config, demo)),
        started: event_loop::unix_seconds(),
        dropped_log_lines: &logging::DROPPED_LINES,
        seed: u64::from_ne_bytes(seed),
    })
}

fn console<'a>(config: &Config, demo: Option<&'a Demo>) -> Console<'a> {
    match demo {
        _ if config.no_console => Console::Off,
        None => Console::On,
        Some(demo) => {
            Console::Demo(DemoAccount { username: demo::USER, password: demo::PASSWORD, databases: demo.databases() })
        }
    }
}

fn catch_signals() -> std::io::Result<Signals> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    Ok(Signals { stop: catch(&[SIGINT, SIGTERM])?, reload: catch(&[SIGHUP])? })
}

/// Returns a stream with a byte for each signal.
fn catch(signals: &[i32]) -> std::io::Result<mio::net::UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, writer.try_clone()?)?;
    }
    Ok(mio::net::UnixStream::from_std(reader))
}

/// Returns the instructions for `--demo`.
fn demo_instructions(demo: &Demo, address: SocketAddr, scheme: &str, console: bool) -> String {
    let databases = demo.databases();
    let (user, password) = (demo::USER, demo::PASSWORD);
    let list = databases.iter().take(2).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(",");
    let authority = if address.ip().is_unspecified() || address.ip().is_loopback() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    };
    let websocket = scheme.replacen("http", "ws", 1);
    let page =
        if console { format!("Look at them: open {scheme}://{authority}/ in a browser.\n\n") } else { String::new() };
    format!(
        r#"
This is a demo: a small CouchDB runs inside the server, and its databases change all the time.

{page}  user {user}, password {password}, databases {}

Connect from another terminal with a WebSocket client, one of

  websocat {websocket}://{authority}/howler
  npx wscat -c {websocket}://{authority}/howler
  python3 -m websockets {websocket}://{authority}/howler        (after pip install websockets)

and type

  {{"op":"log-in","username":"{user}","password":"{password}"}}
  {{"op":"subscribe","dbs":[{list}]}}

Press Ctrl+C to stop the demo.

"#,
        databases.join(", "),
    )
}
