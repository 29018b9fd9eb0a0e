//! Tests of valid and invalid command lines and environments.

use std::collections::HashMap;

use std::net::IpAddr;
use std::path::PathBuf;

use super::*;
use crate::logging;
use crate::state::access;
use crate::state::forwarded_for::TrustsForwarded;
use crate::state::limits::Limits;
use crate::state::resync::Policy;
use crate::state::routes::{Origins, SameSite};
use crate::state::trusted_proxies::TrustedProxies;
use crate::wire::couchdb::FeedSource;
use crate::wire::url::CouchUrl;

const URL: &str = "http://admin:hunter2@localhost:5984";

/// A command line, an environment and files.
#[derive(Default)]
struct Typing {
    args: Vec<OsString>,
    env: HashMap<String, OsString>,
    files: HashMap<PathBuf, String>,
}

impl Typing {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    fn file(mut self, path: &str, content: &str) -> Self {
        self.files.insert(path.into(), content.into());
        self
    }

    fn read(&self) -> Result<Command, ConfigError> {
        let read_file = |path: &Path| self.files.get(path).cloned().ok_or(io::ErrorKind::NotFound.into());
        read(self.args.clone(), &|name| self.env.get(name).cloned(), &read_file)
    }

    fn config(&self) -> Config {
        match self.read() {
            Ok(Command::Run(config)) => *config,
            other => panic!("{:?}: {other:?}", self.args),
        }
    }

    /// Returns the error, after checking that it is one line without a credential.
    fn error(&self) -> String {
        let error = self.read().expect_err(&format!("{:?} {:?}", self.args, self.env)).to_string();
        assert!(!error.contains("hunter2") && !error.contains("ter2"), "{error}");
        assert!(!error.contains(char::is_control), "{error:?}");
        error
    }
}

/// Splits a line into arguments at spaces.
fn args(line: &str) -> Typing {
    Typing { args: line.split_whitespace().map(Into::into).collect(), ..Typing::default() }
}

/// As [`args`], with a valid URL in front.
fn with_url(line: &str) -> Typing {
    args(&format!("-u {URL} {line}"))
}

fn host_of(typing: &Typing) -> Box<str> {
    typing.config().couchdb_url.expect("not a demo").host
}

#[test]
fn options_have_defaults() {
    let expected = Config {
        couchdb_url: Some(CouchUrl::parse(URL).unwrap()),
        couchdb_url_file: None,
        host: None,
        port: 3000,
        tls: None,
        tls_port: None,
        reuse_port: false,
        log_level: log::LevelFilter::Info,
        ca_file: None,
        feed: FeedSource::GlobalChanges,
        create_global_changes: false,
        feed_heartbeat_ms: 10_000,
        origins: Origins::Any,
        no_console: false,
        ping_interval_ms: 25_000,
        ping_timeout_ms: None,
        trusts_forwarded: TrustsForwarded::Auto,
        login_concurrency: 8,
        resync: Policy::Lost,
        merge_window_ms: None,
        limits: Limits::default(),
        catch_up_sessions_s: 0,
        access: access::Policy::Open,
        session_check_s: 300,
        trusted_proxies: TrustedProxies::default(),
        cookie_same_site: SameSite::Lax,
        log_format: logging::Format::Text,
        drain_timeout_s: 10,
        admin_port: None,
        demo: false,
    };
    assert_eq!(with_url("").config(), expected);
    let limits = Limits { login_timeout: 60_000, ..expected.limits.clone() };
    assert_eq!(args("--demo").config(), Config { couchdb_url: None, demo: true, limits, ..expected });
}

#[test]
fn the_demo_leaves_a_minute_to_log_in_by_hand() {
    assert_eq!(args("--demo").config().limits.login_timeout, 60_000);
    assert_eq!(args("--demo --login_timeout 10").config().limits.login_timeout, 10_000);
    assert_eq!(with_url("--demo=no").config().limits.login_timeout, 10_000);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a line for each option")]
fn flags_and_variables_set_every_option() {
    let expected = Config {
        couchdb_url: Some(CouchUrl::parse(URL).unwrap()),
        couchdb_url_file: None,
        host: Some("::1".parse().unwrap()),
        port: 0,
        tls: Some(TlsFiles { certificate: "/etc/chain.pem".into(), key: "/etc/a@b/key.pem".into() }),
        tls_port: Some(0),
        reuse_port: true,
        log_level: log::LevelFilter::Debug,
        ca_file: Some("/etc/a@b:c.pem".into()),
        feed: FeedSource::DbUpdates,
        create_global_changes: true,
        feed_heartbeat_ms: 100,
        origins: Origins::Listed(vec!["https://a.example".into(), "http://b:81".into()]),
        no_console: true,
        ping_interval_ms: 300,
        ping_timeout_ms: Some(200),
        trusts_forwarded: TrustsForwarded::No,
        login_concurrency: 16,
        resync: Policy::Always,
        merge_window_ms: Some(450),
        limits: Limits {
            connections: Some(101),
            per_address: Some(102),
            unauthenticated: 103,
            unauthenticated_bytes: 104 * 1024 * 1024,
            login_timeout: 4_000,
            head: 1_024,
            request_within: 6_000,
            post: 1_025,
            message: 1_026,
            messages_per_second: 7,
            subscriptions: 108,
            name: 109,
            requests: 110,
            login_queue: 111,
            slow: 5_000,
            subscriptions_per_user: Some(112),
            memory: Some(113 * 1024 * 1024),
        },
        catch_up_sessions_s: 300,
        access: access::Policy::Members,
        session_check_s: 7,
        trusted_proxies: TrustedProxies::parse("10.0.0.0/8,::1").unwrap(),
        cookie_same_site: SameSite::Strict,
        log_format: logging::Format::Json,
        drain_timeout_s: 45,
        admin_port: Some(9),
        demo: false,
    };
    let flags = "--host ::1 --port=0 --tls_cert /etc/chain.pem --tls-key=/etc/a@b/key.pem --tls_port 0 --reuse-port -ldebug --ca-file /etc/a@b:c.pem --feed db_updates \
                 --create-global_changes --feed-heartbeat 100 --origins https://a.example,http://b:81 \
                 --merge-window 450 \
                 --no-console --ping_interval 300 --ping-timeout=200 --login_concurrency 16 --couchdb-trusts-forwarded no --resync always --slow_timeout 5 \
                 --max_connections 101 --max-connections-per-address 102 --max_newcomers 103 --max-unauthenticated-memory 104 --login_timeout 4 --max_head 1024 --request_timeout 6 \
                 --max_post 1025 --max_message 1026 --max_message_rate 7 --max_subscriptions 108 --max_subscriptions_per_user 112 --max-memory 113 --max_name 109 --max_requests 110 --login_queue 111 \
                 --catch-up-sessions 300 --access members --session-check 7 --trusted-proxies 10.0.0.0/8,::1 \
                 --cookie-same-site strict --drain-timeout 45 --admin-port 9 --log-format json";
    assert_eq!(with_url(flags).config(), expected);
    let variables = args("")
        .env("HOWLER_COUCHDB_URL", URL)
        .env("HOWLER_HOST", "::1")
        .env("HOWLER_ORIGINS", " https://a.example, http://b:81,")
        .env("HOWLER_NO_CONSOLE", "yes")
        .env("HOWLER_PING_INTERVAL", "300")
        .env("HOWLER_PING_TIMEOUT", "200")
        .env("HOWLER_PORT", "0")
        .env("HOWLER_TLS_CERT", "/etc/chain.pem")
        .env("HOWLER_TLS_KEY", "/etc/a@b/key.pem")
        .env("HOWLER_TLS_PORT", "0")
        .env("HOWLER_REUSE_PORT", "1")
        .env("HOWLER_LOG_LEVEL", "debug")
        .env("HOWLER_CA_FILE", "/etc/a@b:c.pem")
        .env("HOWLER_FEED", "db_updates")
        .env("HOWLER_CREATE_GLOBAL_CHANGES", "true")
        .env("HOWLER_LOGIN_CONCURRENCY", "16")
        .env("HOWLER_COUCHDB_TRUSTS_FORWARDED", "no")
        .env("HOWLER_RESYNC", "always")
        .env("HOWLER_MERGE_WINDOW", "450")
        .env("HOWLER_SLOW_TIMEOUT", "5")
        .env("HOWLER_COOKIE_SAME_SITE", "strict")
        .env("HOWLER_MAX_CONNECTIONS", "101")
        .env("HOWLER_MAX_CONNECTIONS_PER_ADDRESS", "102")
        .env("HOWLER_MAX_NEWCOMERS", "103")
        .env("HOWLER_MAX_SUBSCRIPTIONS_PER_USER", "112")
        .env("HOWLER_MAX_MEMORY", "113")
        .env("HOWLER_MAX_UNAUTHENTICATED_MEMORY", "104")
        .env("HOWLER_LOGIN_TIMEOUT", "4")
        .env("HOWLER_MAX_HEAD", "1024")
        .env("HOWLER_REQUEST_TIMEOUT", "6")
        .env("HOWLER_MAX_POST", "1025")
        .env("HOWLER_MAX_MESSAGE", "1026")
        .env("HOWLER_MAX_MESSAGE_RATE", "7")
        .env("HOWLER_MAX_SUBSCRIPTIONS", "108")
        .env("HOWLER_MAX_NAME", "109")
        .env("HOWLER_MAX_REQUESTS", "110")
        .env("HOWLER_LOGIN_QUEUE", "111")
        .env("HOWLER_CATCH_UP_SESSIONS", "300")
        .env("HOWLER_ACCESS", "members")
        .env("HOWLER_SESSION_CHECK", "7")
        .env("HOWLER_TRUSTED_PROXIES", "10.0.0.0/8,::1")
        .env("HOWLER_DRAIN_TIMEOUT", "45")
        .env("HOWLER_ADMIN_PORT", "9")
        .env("HOWLER_LOG_FORMAT", "json")
        .env("HOWLER_FEED_HEARTBEAT", "100");
    assert_eq!(variables.config(), expected);
    assert!(args("").env("HOWLER_DEMO", "1").config().demo);
}

#[test]
fn options_have_several_forms() {
    for line in ["-p 80", "-p80", "-p=80", "--port 80", "--port=80", "--port 1 --port 80", "-p1 --port=80"] {
        assert_eq!(with_url(line).config().port, 80, "{line}");
    }
    for line in ["--couchdb_url", "--couchdb-url", "-u"] {
        assert_eq!(&*host_of(&args(&format!("{line} {URL}"))), "localhost");
        assert_eq!(&*host_of(&args(&format!("{line}={URL}"))), "localhost");
    }
    assert!(!args(&format!("--demo --demo=false -u {URL}")).config().demo);
    for (level, filter) in [("error", log::LevelFilter::Error), ("warn", log::LevelFilter::Warn)] {
        assert_eq!(with_url(&format!("--log-level {level}")).config().log_level, filter);
    }
    assert_eq!(with_url("--host 0.0.0.0").config().host, Some(IpAddr::from([0, 0, 0, 0])));
    assert_eq!(with_url("--port 65535 --feed_heartbeat=60000").config().feed_heartbeat_ms, 60_000);
}

#[test]
fn help_and_version_take_precedence_over_errors() {
    let help = [
        "-h",
        "--help",
        "--help --version",
        "-vh",
        "--help=yes",
        "--bogus -h",
        "--port x --help",
        "x -h",
        "-u --help",
        "--demo -u http://x -h",
        "-l",
    ];
    for line in help {
        let typing = if line == "-l" { args(line).env("help", "true") } else { args(line) };
        assert_eq!(typing.read(), Ok(Command::Help), "{line}");
    }
    for line in ["-v", "--version", "--bogus=1 -v", "--version --help=false"] {
        assert_eq!(args(line).read(), Ok(Command::Version), "{line}");
    }
    for (name, value, command) in [
        ("help", "true", Command::Help),
        ("HOWLER_HELP", "1", Command::Help),
        ("--help", "yes", Command::Help),
        ("version", "true", Command::Version),
        ("HOWLER_VERSION", "TRUE", Command::Version),
    ] {
        assert_eq!(args("").env(name, value).read(), Ok(command), "{name}");
    }
    assert_eq!(args("-v").env("help", "what").read(), Ok(Command::Version));
    assert_eq!(args("--print_completions zsh").read(), Ok(Command::Completions(Shell::Zsh)));
    assert_eq!(args("--print-man -u x").read(), Ok(Command::Man));
    assert!(args("--print_completions csh").error().contains("one of bash, zsh, fish"));
    assert!(matches!(with_url("").env("help", "false").env("version", "no").read(), Ok(Command::Run(_))));
    assert!(matches!(with_url("--help=false").env("help", "true").read(), Ok(Command::Run(_))));
}

#[test]
fn command_line_takes_precedence_over_environment() {
    let named = |host: &str| format!("http://u:hunter2@{host}");
    let mut typing = args("").env("--couchdb_url", &named("literal"));
    assert_eq!(&*host_of(&typing), "literal");
    typing = typing.env("couchdb_url", &named("bare"));
    assert_eq!(&*host_of(&typing), "bare");
    let filed = |content: &str| {
        args("").env("couchdb_url", &named("bare")).env("HOWLER_COUCHDB_URL_FILE", "/f").file("/f", content)
    };
    for end in ["", "\n", "\r\n", " \r\n\n", "\t"] {
        assert_eq!(&*host_of(&filed(&(named("file") + end))), "file");
        assert_eq!(&*host_of(&filed(&format!("\u{feff}{}{end}", named("file")))), "file");
    }
    assert_eq!(filed(&named("file")).config().couchdb_url_file, Some("/f".into()));
    typing = typing.env("HOWLER_COUCHDB_URL", &named("own"));
    assert_eq!(&*host_of(&typing), "own");
    typing = typing.env("HOWLER_COUCHDB_URL_FILE", "/missing");
    assert!(typing.error().contains("HOWLER_COUCHDB_URL_FILE"));
    typing.args = vec!["-u".into(), named("flag").into()];
    assert_eq!(&*host_of(&typing), "flag");

    assert_eq!(with_url("-p 1").env("HOWLER_PORT", "x").config().port, 1, "what does not count is not checked");
    assert_eq!(with_url("").env("HOWLER_PORT", "2").env("port", "3").config().port, 2);
    assert_eq!(with_url("").env("port", "3").env("--port", "4").config().port, 3);
    assert_eq!(with_url("").env("--log_level", "warn").config().log_level, log::LevelFilter::Warn);
}

#[test]
fn empty_and_foreign_variables_are_ignored() {
    let strange = with_url("").env("HOWLER_PORT", "").env("port", "").env("--port", "").env("HOWLER_DEMO", "");
    let strange = strange.env("host", "x").env("feed", "x").env("demo", "true").env("--demo", "true");
    let strange = strange.env("ca_file", "x").env("PORT", "80").env("HOWLER_PORT_FILE", "/x").env("help", "");
    assert_eq!(strange.env("HOWLER_COUCHDB_URL_FILE", "").config(), with_url("").config());
    let kubernetes = with_url("").env("HOWLER_PORT", "tcp://10.0.0.1:3000");
    assert_eq!(kubernetes.config().port, 3000);
    let kubernetes = kubernetes.env("HOWLER_TLS_PORT", "tcp://10.0.0.2:443").env("HOWLER_ADMIN_PORT", "udp://a:1");
    assert_eq!(kubernetes.config().admin_port, None);
    assert_eq!(kubernetes.config().tls_port, None);
    assert_eq!(kubernetes.env("port", "80").config().port, 80);
}

#[test]
fn errors_name_option_value_and_expectation() {
    for (line, parts) in [
        ("--port abc", &["--port: expected a number from 0 to 65535, got \"abc\""][..]),
        ("--port 65536", &["--port", "\"65536\""]),
        ("--port +80", &["--port", "\"+80\""]),
        ("--port -5", &["--port", "\"-5\""]),
        ("--port 99999999999999999999999", &["--port"]),
        ("-p", &["--port: expected a number from 0 to 65535, but the value is missing"]),
        ("--port=", &["--port", "the value is missing"]),
        ("--port --demo", &["--port", "the value is missing"]),
        ("-p --", &["--port", "the value is missing"]),
        ("--merge_window 10001", &["--merge_window: expected auto, or a number from 0 to 10000, got \"10001\""]),
        ("--merge_window +5", &["--merge_window: expected auto"]),
        ("--feed_heartbeat 99", &["--feed_heartbeat: expected a number from 100 to 60000, got \"99\""]),
        ("--feed_heartbeat 60001", &["--feed_heartbeat"]),
        ("--origins a.example", &["--origins", "is no origin"]),
        ("--origins https://a.example/", &["--origins", "is no origin"]),
        ("--origins ,", &["--origins"]),
        ("-l trace", &["--log_level: expected one of error, warn, info, debug, got \"trace\""]),
        ("--feed changes", &["--feed: expected one of global_changes, db_updates, got \"changes\""]),
        ("--host localhost", &["--host: expected an IP address such as 127.0.0.1 or ::1, got \"localhost\""]),
        ("--demo=maybe", &["--demo: expected true, false, 1, 0, yes or no, got \"maybe\""]),
        ("--demo=", &["--demo", "the value is missing"]),
        ("--demo", &["--couchdb_url: expected none with --demo"]),
        ("--ca_file", &["--ca_file: expected a file of certificates (PEM), but the value is missing"]),
        ("--tls_cert /c", &["--tls_cert: expected --tls_key beside it, the name of a file with a private key"]),
        ("--tls_key /k", &["--tls_key: expected --tls_cert beside it, the name of a file of certificates"]),
        ("--tls_port 1", &["--tls_port: expected --tls_cert beside it"]),
        ("--tls_port 1 --tls_key /k", &["--tls_key: expected --tls_cert beside it"]),
        ("--tls_cert /c --tls_key /k --tls_port 65536", &["--tls_port: expected a number", "\"65536\""]),
        ("--tls_cert /c --tls_key /k --tls_port +1", &["--tls_port: expected a number", "\"+1\""]),
        ("--admin_port x", &["--admin_port: expected a number from 0 to 65535, got \"x\""]),
        ("--admin_port 3000", &["--admin_port: ", "\"3000\": clients use that port"]),
        ("--tls_cert /c --tls_key /k --tls_port 9 --admin_port 9", &["--admin_port: ", "clients use that port"]),
        ("--tls_cert /c --tls_key /k --tls_port 9 -p 9", &["--tls_port: ", "\"9\": --port has that number"]),
        (
            "--tls_cert /c --tls_key=-----BEGIN-hunter2",
            &["--tls_key: expected the name of a file", "the content of one"],
        ),
        ("extra", &["unexpected argument \"extra\""]),
        ("-- -v", &["unexpected argument \"-v\""]),
        ("-", &["unexpected argument \"-\""]),
        ("-x", &["unknown option -x;"]),
        ("---port=1", &["unknown option ---port;", "did you mean --port?"]),
        ("--couchdburl=http://u:hunter2@h", &["unknown option --couchdburl;", "did you mean --couchdb_url?"]),
        ("--log=debug", &["unknown option --log;", "did you mean --log_level?"]),
        ("--create-global-change", &["--create-global-change;", "did you mean --create_global_changes?"]),
        ("--prot 80", &["unknown option --prot; --help lists"]),
        ("--pot 80", &["unknown option --pot; did you mean --port?"]),
        ("--daemonize", &["unknown option --daemonize; --help lists the options"]),
        ("--Port 80", &["unknown option --Port; did you mean --port?"]),
        ("--bogus --port x y", &["unknown option --bogus"]),
    ] {
        let error = with_url(line).error();
        assert!(parts.iter().all(|part| error.contains(part)), "{line}: {error}");
    }
    let missing = args("").error();
    assert_eq!(
        missing,
        "--couchdb_url: it is missing, expected http[s]://user:password@host[:port][/path] (or --demo)"
    );
    assert!(with_url(&format!("--host {}", "a".repeat(5000))).error().len() < 200);
    assert!(with_url(&format!("--{}", "a".repeat(5000))).error().len() < 200);
}

#[test]
fn errors_name_the_variable() {
    for (name, value, parts) in [
        ("HOWLER_PORT", "x", &["--port (environment variable HOWLER_PORT): expected", "\"x\""][..]),
        ("port", "tcp://1.2.3.4:80", &["(environment variable port): ", "\"tcp://1.2.3.4:80\""]),
        ("log_level", "loud\nly", &["(environment variable log_level): ", r#""loud\nly""#]),
        ("--log_level", "loud", &["--log_level (environment variable --log_level): "]),
        ("HOWLER_DEMO", "on", &["(environment variable HOWLER_DEMO): expected true", "\"on\""]),
        ("HOWLER_DEMO", "yes", &["--couchdb_url: expected none with --demo"]),
        ("version", "1.2.3", &["--version (environment variable version): expected true"]),
        ("help", "me", &["--help (environment variable help): expected true"]),
    ] {
        let error = with_url("").env(name, value).error();
        assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
    }
    for name in ["HOWLER_COUCHDB_URL", "couchdb_url", "--couchdb_url"] {
        assert!(args("").env(name, "http://h").error().contains(&format!("(environment variable {name}): ")));
        assert!(args("--demo").env(name, URL).error().contains("--demo"));
    }
    let file = || args("").env("HOWLER_COUCHDB_URL_FILE", "/run/url");
    assert!(file().error().contains("variable HOWLER_COUCHDB_URL_FILE, file \"/run/url\"): the file cannot be read"));
    assert!(file().file("/run/url", "\n").error().ends_with("but the file is empty"));
    assert!(args("").env("HOWLER_COUCHDB_URL_FILE", URL).error().contains("http://***@localhost:5984"));
}

#[test]
#[cfg(unix)]
fn values_must_be_utf_8() {
    use std::os::unix::ffi::OsStringExt;
    let broken = |text: &[u8]| OsString::from_vec([text, b"\xff"].concat());
    for (arg, part) in [
        (&b"--port=8"[..], "--port: the value is not UTF-8"),
        (b"-uhttp://u:hunter2", "--couchdb_url: the value is not UTF-8"),
        (b"--po", "unknown option --po..."),
        (b"-", "unknown option -\\u{fffd}"),
        (b"http://u:hunter2@h", "unexpected argument"),
    ] {
        let mut typing = with_url("");
        typing.args.push(broken(arg));
        let error = typing.error();
        assert!(error.contains(part), "{error}");
    }
    let mut typing = args("");
    typing.env.insert("couchdb_url".into(), broken(b"http://u:hunter2@h"));
    assert!(typing.error().contains("(environment variable couchdb_url): the value is not UTF-8"));
}

#[test]
fn rejected_urls_do_not_leak() {
    for (url, shown) in [
        ("http://localhost:5984", "\"http://localhost:5984\": the credentials"),
        ("http://localhost:5984/couch", "\"http://localhost:5984/couch\": the credentials"),
        ("https://[::1]:5984", "\"https://[::1]:5984\": the credentials"),
        ("http://:hunter2@h", "\"http://***@h\": the credentials"),
        ("http://@h", "\"http://***@h\": the credentials"),
        ("ftp://u:hunter2@h", "\"ftp://***@h\": it must start"),
        ("htp://u:hunter2@h:5984/x", "\"htp://***@h:5984/x\": it must start"),
        ("localhost:5984", "\"localhost:5984\": it must start"),
        ("localhost", "\"localhost\": it must start"),
        ("u:hunter2@h", "\"***@h\": it must start"),
        ("u:hunter2", "\"***\": it must start"),
        ("//u:hunter2", "\"***\": it must start"),
        ("http:/u:hunter2", "\"***\": it must start"),
        ("http:u:hunter2", "\"***\": it must start"),
        ("http://u:hunter2", "\"http://***\": the port"),
        ("http://u:1hunter2", "\"http://***\": the port"),
        ("http://u:12:hunter2", "\"http://***\": the port"),
        ("http://u:hunter2/", "\"http://***\": the port"),
        ("http://u:hunter2]", "\"http://***\": the port"),
        ("http://[u:hunter2]", "\"http://***\": the host"),
        ("http://u:hunter2%40h", "\"http://***\": the port"),
        ("http://u%3Ahunter2%40h", "\"http://***\": the host"),
        ("http://u:hunter2@", "\"http://***@\": the host"),
        ("http://u:hunter2@h:port", "\"http://***@***\": the port"),
        ("http://h:5984@u:hunter2", "\"http://***@***\": the port"),
        ("http://u:hun/ter2@h", "\"http://***@h\": its path must not hold an @"),
        ("http://u:12/hunter2@h", "\"http://***@h\": its path must not hold an @"),
        ("http://u:p@x/hunter2@h", "\"http://***@h\": its path must not hold an @"),
        ("http://u:hun#ter2@h", "\"http://***@h\": it must not hold a query"),
        ("http://u:hun?ter2@h", "\"http://***@h\": it must not hold a query"),
        ("http://h?name=u&password=hunter2", "\"http://***\": it must not hold a query"),
        ("http://u:hunter2%@h", "\"http://***@h\": a % must"),
        ("http://u:hunter2\n@h", "\"http://***@h\": it must not hold spaces"),
        ("http://u:hunter2@h\n@i", "\"http://***@i\": it must not hold spaces"),
    ] {
        let typing = Typing { args: vec!["-u".into(), url.into()], ..Typing::default() };
        let error = typing.error();
        let start = "--couchdb_url: expected http[s]://user:password@host[:port][/path], got ";
        assert!(error.starts_with(start) && error[start.len()..].starts_with(shown), "{url}: {error}");

        args("").env("couchdb_url", url).error();
        let filed = args("").env("HOWLER_COUCHDB_URL_FILE", "/f").file("/f", url).error();
        assert!(!filed.contains("got"), "{filed}");
    }
    args("").env("HOWLER_COUCHDB_URL_FILE", "/f").file("/f", "hunter2\n").error();
}

#[test]
fn misplaced_urls_do_not_leak() {
    for line in [
        "http://u:hunter2@h",
        "u:hunter2@h",
        "http://u:hunter2",
        "-phttp://u:hunter2@h",
        "--port http://u:hunter2",
        "-l u:hunter2@h",
        "--demo=http://u:hunter2@h",
        "--host=http://u:hunter2@h",
        "--couchdb_urlhttp://u:hunter2@h",
        "--http://u:hunter2@h",
        "--couchdb=url=http://u:hunter2@h",
        "-couchdb_url=http://u:hunter2@d",
        "-x=http://u:hunter2@d",
        "http://u:hun ter2@h",
    ] {
        with_url(line).error();
    }
}

#[test]
fn table_is_consistent() {
    for (at, row) in OPTIONS.iter().enumerate() {
        assert_eq!(OptionRow::named(row.name), Some(at), "{} is listed twice", row.name);
        assert!(row.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", row.name);
        let same_letter = OPTIONS.iter().filter(|other| row.short.is_some() && other.short == row.short);
        assert!(same_letter.count() <= 1, "{}", row.name);
        let asked_for = row.name == "print_completions";
        let needs_default = matches!(row.takes, Takes::Choice(_) | Takes::Number(..)) && !asked_for;
        assert_eq!(row.default.is_some(), needs_default, "{}", row.name);
    }
    let words: Vec<_> = COMMANDS.iter().map(|command| command.name).collect();
    assert!(words.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase())), "{words:?}");
    assert!(words.iter().enumerate().all(|(at, word)| !words[..at].contains(word)), "{words:?}");
}

#[test]
fn help_lists_every_option() {
    let help = help();
    for row in OPTIONS {
        let name = format!("--{}", row.name);
        assert!(help.contains(&name) && help.contains(&row.variable()) && help.contains(row.help), "{name}");
    }
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {}\n        {}\n", command.name, command.help)), "{}", command.name);
    }
    assert!(help.contains("-p, --port PORT") && help.contains("(default 3000, 0 to 65535)"));
    assert!(help.contains("HOWLER_COUCHDB_URL_FILE"));
    assert!(help.lines().all(|line| line.chars().count() <= 81), "{help}");
    assert!(!help.contains("  \n") && help.ends_with('\n'));
    assert!(version().starts_with(|c: char| c.is_ascii_digit()));
}

#[test]
fn commands_are_found_and_suggested() {
    let check = with_url("check -p 81");
    assert_eq!(check.read(), Ok(Command::Check(Box::new(with_url("-p 81").config()))));
    assert_eq!(with_url("-p 81 check").read(), check.read());
    assert!(args("check").error().contains("--couchdb_url"), "check needs what run needs");
    assert_eq!(args("check --help").read(), Ok(Command::Help));
    for (line, words) in [
        ("chek", "did you mean the command check?"),
        ("Check", "did you mean the command check?"),
        ("health-check", "did you mean the command healthcheck?"),
        ("HEALTHCHEK", "did you mean the command healthcheck?"),
        ("check check", "unexpected argument \"check\""),
        ("check healthcheck", "unexpected argument \"healthcheck\""),
        ("cheese", "only options take values"),
        ("http://u:zq7-a@b", "only options take values"),
    ] {
        let error = with_url(line).error();
        assert!(error.contains(words) && !error.contains("zq7-"), "{line}: {error}");
    }
}

#[test]
fn health_check_reads_endpoint_options_alone() {
    let asked = |typing: &Typing| match typing.read() {
        Ok(Command::HealthCheck(asked)) => asked,
        other => panic!("{other:?}"),
    };
    let plain = |port| HealthPort { host: None, port, certificate: None };
    assert_eq!(asked(&args("healthcheck")), plain(3000));
    assert_eq!(asked(&args("healthcheck -p 80 --demo --admin_port 81")), plain(81));
    let tls = "healthcheck --host ::1 --tls_cert /c --tls_key /k";
    let shown = HealthPort { host: Some("::1".parse().unwrap()), port: 3000, certificate: Some("/c".into()) };
    assert_eq!(asked(&args(tls)), shown);
    assert_eq!(asked(&args(&format!("{tls} --tls_port 81"))).certificate, None);
    assert_eq!(asked(&args(&format!("{tls} --admin_port 81"))).port, 81);
    // Errors in other options do not matter.
    let typing = args("healthcheck").env("HOWLER_COUCHDB_URL_FILE", "/missing").env("HOWLER_FEED", "x");
    assert_eq!(asked(&typing.env("HOWLER_PORT", "82")), plain(82));
    for (line, words) in
        [("-p 0", "--port: expected the port of the running server"), ("--admin_port 0", "--admin_port: expected")]
    {
        assert!(args(&format!("healthcheck {line}")).error().contains(words), "{line}");
    }
    for line in ["-p x", "--bogus", "--host here", "--tls_cert /c", "twice"] {
        assert!(args(&format!("healthcheck {line}")).read().is_err(), "{line}");
    }
}
