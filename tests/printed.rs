//! Output for other programs: shell completions, which the tests run in those shells, and the
//! manual page.

use std::process::{Command, Stdio};

use couchdb_howler::config::{COMMANDS, OPTIONS};

use crate::support::howler::{BINARY, run};

fn printed(option: &str, value: &[&str]) -> String {
    let ended = run(&[&[option], value].concat(), &[]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{option}");
    ended.stdout
}

/// Runs a program that must succeed without any message on stderr; returns its output.
fn said(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).env("HOWLER", BINARY).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{program} is needed (tests/run.sh): {error}"));
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && stderr.is_empty(), "{program} {arguments:?}: {stdout}{stderr}");
    stdout
}

/// Returns the completions that a shell offers for the last word.
type Offers = fn(words: &[&str]) -> Vec<String>;

fn bash(words: &[&str]) -> Vec<String> {
    let script = "source <(\"$HOWLER\" --print_completions bash); COMP_WORDS=(couchdb-howler \"$@\"); COMP_CWORD=$#
                  complete -p couchdb-howler > /dev/null && _couchdb_howler; printf '%s\\n' \"${COMPREPLY[@]}\"";
    lines(&said("bash", &[&["-c", script, "bash"], words].concat()))
}

fn fish(words: &[&str]) -> Vec<String> {
    let script = "$HOWLER --print_completions fish | source; complete -C \"couchdb-howler $argv\"";
    let output = said("fish", &["--no-config", "-c", script, "--", &words.join(" ")]);
    // Each line is a completion, a tab and its description.
    lines(&output).iter().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
}

fn lines(text: &str) -> Vec<String> {
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn has(offered: &[String], words: &[&str]) -> bool {
    words.iter().all(|word| offered.iter().any(|one| one == word))
}

#[test]
fn shells_offer_options_words_and_files() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("completed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("chain.pem"), "").unwrap();
    let begun = folder.join("cha");
    let file = folder.join("chain.pem");
    for (name, offers) in [("bash", bash as Offers), ("fish", fish)] {
        let offered = offers(&["--f"]);
        assert!(has(&offered, &["--feed", "--feed_heartbeat"]), "{name}: {offered:?}");
        assert!(!has(&offered, &["--port"]), "{name}: {offered:?}");
        let offered = offers(&["--feed", ""]);
        assert!(has(&offered, &["global_changes", "db_updates"]), "{name}: {offered:?}");
        let offered = offers(&["-l", ""]);
        assert!(has(&offered, &["error", "warn", "info", "debug"]), "{name}: {offered:?}");
        let offered = offers(&["--tls_cert", begun.to_str().unwrap()]);
        assert_eq!(offered, [file.to_str().unwrap()], "{name}");
        assert_eq!(offers(&["--port", ""]), [] as [&str; 0], "{name}: a port has no completions");
        // A switch takes no value: the next word is an option again.
        let offered = offers(&["--demo", "--no_c"]);
        assert!(offered.iter().any(|one| one.starts_with("--no_console")), "{name}: {offered:?}");
    }
    // Bash passes `=` as a word of its own; dashes and underscores are interchangeable.
    assert!(has(&bash(&["--feed", "=", "db"]), &["db_updates"]));
    assert!(has(&bash(&["--log-format", ""]), &["text", "json"]));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn every_option_and_command_is_in_all_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed("--print_completions", &[shell]);
        for row in OPTIONS {
            let name = if shell == "fish" { format!("-l {}", row.name) } else { format!("--{}", row.name) };
            assert!(script.contains(&name), "{shell}: {name}");
        }
        assert!(COMMANDS.iter().all(|row| script.contains(row.name)), "{shell}");
    }
    assert_eq!(run(&["--print_completions", "csh"], &[]).code, Some(2));
    assert_eq!(run(&["--print_completions"], &[]).code, Some(2));
}

#[test]
fn shells_parse_their_completions_without_errors() {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("printed-{}", std::process::id()));
    for shell in ["bash", "zsh", "fish"] {
        std::fs::write(&file, printed("--print_completions", &[shell])).unwrap();
        assert_eq!(said(shell, &["-n", file.to_str().unwrap()]), "", "{shell}");
    }
    // When sourced, the completions belong to the command.
    let script = "autoload -Uz compinit; compinit -D -u; source \"$1\"; print -r -- $_comps[couchdb-howler]";
    std::fs::write(&file, printed("--print_completions", &["zsh"])).unwrap();
    assert_eq!(said("zsh", &["-f", "-c", script, "zsh", file.to_str().unwrap()]), "_couchdb_howler\n");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn the_manual_page_is_complete_and_passes_groff() {
    let file =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("couchdb-howler-{}.1", std::process::id()));
    std::fs::write(&file, printed("--print_man", &[])).unwrap();
    let page = said("groff", &["-ww", "-man", "-Tascii", "-P-cbou", "-rLL=200n", file.to_str().unwrap()]);
    for row in OPTIONS {
        assert!(page.contains(&format!("--{}", row.name)) && page.contains(&row.variable()), "{}: {page}", row.name);
        assert!(page.contains(row.help), "{}: {page}", row.help);
    }
    for words in ["NAME", "SYNOPSIS", "EXIT STATUS", "SIGHUP", "--drain_timeout", "(default 3000, 0 to 65535)"] {
        assert!(page.contains(words), "{words}: {page}");
    }
    assert!(COMMANDS.iter().all(|row| page.contains(row.name) && page.contains(row.help)));
    assert!(said("man", &["--warnings", "-l", file.to_str().unwrap()]).contains("couchdb-howler"));
    std::fs::remove_file(file).unwrap();
}
