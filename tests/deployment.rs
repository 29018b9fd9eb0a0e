//! The files in `tests/deploy`: they are valid, and the names in them exist.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use couchdb_howler::config::OPTIONS;
use serde_json::Value;

use crate::support::howler::{BINARY, Howler};
use crate::support::http::Http;
use crate::support::script::{assert_installed, target};
use crate::support::{SOON, couchdb};

/// Returns all documents of a YAML file, read by a strict library.
fn documents(name: &str) -> Vec<Value> {
    const READ: &str = "\
import json, sys, yaml
print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1], encoding='utf-8')))))
";
    assert_installed();
    let output = Command::new(target().join("py-v5/bin/python"))
        .args(["-c", READ])
        .arg(deploy().join(name))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("Python runs");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("the output is JSON")
}

fn deploy() -> PathBuf {
    root().join("tests/deploy")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn find<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|one| one["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// Asserts that an option has this environment variable and accepts the value.
fn assert_variable(name: &str, value: Option<&str>) {
    let known = |row: &couchdb_howler::config::OptionRow| {
        row.variable() == name || row.file_variable().as_deref() == Some(name)
    };
    assert!(OPTIONS.iter().any(known), "no option has the variable {name}");
    let Some(value) = value else { return };
    let env = |asked: &str| match asked {
        _ if asked == name => Some(value.into()),
        "HOWLER_COUCHDB_URL" if name != "HOWLER_COUCHDB_URL_FILE" => Some("http://a:b@c".into()),
        _ => None,
    };
    let file = |_: &Path| Ok("http://a:b@c".to_owned());
    let read = couchdb_howler::config::read([], &env, &file);
    assert!(read.is_ok(), "{name}={value}: {read:?}");
}

/// Asserts that the image has this version.
fn assert_image(image: &Value) {
    assert_eq!(image.as_str(), Some(concat!("couchdb-howler:", env!("CARGO_PKG_VERSION"))));
}

fn variable_of<'a>(container: &'a Value, name: &str) -> &'a Value {
    container["env"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn kubernetes_manifest_matches_the_server() {
    let documents = documents("kubernetes.yaml");
    assert_image(&find(&documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]);
    let pod = &find(&documents, "Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    for one in container["env"].as_array().unwrap() {
        assert_variable(one["name"].as_str().unwrap(), one["value"].as_str());
    }
    let secret = &variable_of(container, "HOWLER_COUCHDB_URL")["valueFrom"]["secretKeyRef"];
    let given = &find(&documents, "Secret");
    assert_eq!(secret["name"], given["metadata"]["name"]);
    assert!(given["stringData"][secret["key"].as_str().unwrap()].is_string());
    let drain: u64 = variable_of(container, "HOWLER_DRAIN_TIMEOUT")["value"].as_str().unwrap().parse().unwrap();
    let pause = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > drain + pause + 5);
    let port = &container["ports"][0];
    let default = OPTIONS.iter().find(|row| row.name == "port").unwrap().default.unwrap();
    assert_eq!(port["containerPort"].to_string(), default);
    let service = find(&documents, "Service");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
    assert_eq!(service["spec"]["selector"], find(&documents, "Deployment")["spec"]["selector"]["matchLabels"]);
    assert_eq!(service["spec"]["sessionAffinity"], "ClientIP");
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);

    // The server answers the probes.
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for probe in ["readinessProbe", "livenessProbe"] {
        let probed = &container[probe]["httpGet"];
        assert_eq!(probed["port"], port["name"], "{probe}");
        // Kubernetes also repeats the probe until the server is ready.
        let deadline = Instant::now() + SOON;
        loop {
            let answer = Http::connect(howler.address()).get(probed["path"].as_str().unwrap());
            if answer.status == 200 {
                break;
            }
            assert!(Instant::now() < deadline, "{probe}: {answer:?}");
        }
    }
}

#[test]
fn swarm_stack_matches_the_server() {
    let stack = &documents("swarm.yaml")[0];
    let secret = stack["services"]["howler"]["secrets"][0]["source"].as_str().unwrap();
    assert_fits(stack, secret, &stack["services"]["howler"]["deploy"]["labels"]);
}

#[test]
fn compose_file_matches_the_server() {
    let stack = &documents("compose.yaml")[0];
    let secret = stack["services"]["howler"]["secrets"][0].as_str().unwrap();
    assert_fits(stack, secret, &stack["services"]["howler"]["labels"]);
}

fn assert_fits(stack: &Value, secret: &str, labels: &Value) {
    let howler = &stack["services"]["howler"];
    assert_image(&howler["image"]);
    let environment = howler["environment"].as_object().unwrap();
    for (name, value) in environment {
        assert_variable(name, value.as_str());
    }
    assert!(stack["secrets"][secret].is_object());
    assert_eq!(environment["HOWLER_COUCHDB_URL_FILE"], format!("/run/secrets/{secret}"));
    let grace: u64 = howler["stop_grace_period"].as_str().unwrap().trim_end_matches('s').parse().unwrap();
    assert!(grace > environment["HOWLER_DRAIN_TIMEOUT"].as_str().unwrap().parse::<u64>().unwrap() + 5);
    let labels = labels.as_array().unwrap();
    let label = |name: &str| {
        let named = |one: &&str| one.starts_with(name);
        let found = labels.iter().filter_map(Value::as_str).find(named).unwrap_or_else(|| panic!("no {name}"));
        found[name.len()..].trim_start_matches('=').to_owned()
    };
    assert_eq!(label("traefik.http.services.howler.loadbalancer.server.port"), "3000");
    assert!(!label("traefik.http.services.howler.loadbalancer.sticky.cookie.name").is_empty());
    assert_eq!(label("traefik.http.services.howler.loadbalancer.healthcheck.path"), "/readyz");
}

#[test]
fn systemd_units_are_valid_and_hardened() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("units-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut paths = Vec::new();
    for name in ["howler.service", "howler.socket"] {
        let text = std::fs::read_to_string(deploy().join("systemd").join(name)).unwrap();
        let path = folder.join(name);
        // The program need not be installed.
        std::fs::write(&path, text.replace("/usr/local/bin/couchdb-howler", BINARY)).unwrap();
        paths.push(path);
    }
    let said = |arguments: &[&str], paths: &[std::path::PathBuf]| {
        let output = Command::new("systemd-analyze").args(arguments).args(paths).stdin(Stdio::null()).output();
        let output = output.expect("systemd-analyze runs (Debian package systemd)");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    assert_eq!(said(&["verify", "--man=no"], &paths), "", "systemd-analyze reports no problems");
    // An exposure of at most 1.5 on a scale to 10.
    said(&["security", "--offline=true", "--threshold=15", "--no-pager"], &paths[..1]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn every_variable_in_readme_and_manual_belongs_to_an_option() {
    let pages = std::fs::read_dir(root().join("src/manual")).unwrap().map(|entry| entry.unwrap().path());
    let pages = pages.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let texts = pages.chain([root().join("README.md")]).map(|path| std::fs::read_to_string(path).unwrap());
    let text = texts.collect::<String>();
    let end = |c: char| !(c.is_ascii_uppercase() || c == '_');
    let found = text.match_indices("HOWLER_").map(|(at, _)| text[at..].split(end).next().unwrap());
    // Variables of the tests are not options.
    let of_tests = |name: &&str| *name == "HOWLER_" || name.starts_with("HOWLER_CHAOS_");
    let names = found.filter(|name| !of_tests(name)).collect::<std::collections::BTreeSet<_>>();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert_variable(name, None);
    }
}
