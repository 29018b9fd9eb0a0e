#!/usr/bin/env bash
# Installs what is missing and runs every check of this project. Each step runs although an earlier one
# failed; a table of the steps ends the output. Exit code 1 if any step failed.
#
#   tests/run.sh                   everything, about 25 minutes on two cores
#   FUZZ_SECONDS=60 tests/run.sh   a longer fuzz of each target (default 10)
#
# Needs rustup with the stable toolchain, Node.js 20 with npm, and Python 3 with venv. On Debian as
# root the script installs packages itself.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin"

machine="$(uname -m)"
static_target="$machine-unknown-linux-musl"
target_dir="${CARGO_TARGET_DIR:-target}"
case "$target_dir" in /*) ;; *) target_dir="$PWD/$target_dir" ;; esac
export HOWLER_STATIC_BINARY="$target_dir/$static_target/release/couchdb-howler"
fuzz_seconds="${FUZZ_SECONDS:-10}"

fail() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }

# Installs a Debian package if its command is missing.
need() {
    command -v "$1" > /dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || fail "$1 is needed (Debian package $2)"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2" > /dev/null || fail "$2 cannot be installed"
}

tools() {
    command -v cargo > /dev/null || fail "cargo is needed (https://rustup.rs)"
    command -v rustup > /dev/null || fail "rustup is needed (https://rustup.rs)"
    need cc gcc
    need git git
    need musl-gcc musl-tools
    need node nodejs
    need npm npm
    need python3 python3
    need chroot coreutils
    need curl curl
    need openssl openssl
    need zsh zsh
    need fish fish
    need groff groff
    need man man-db
    need chromium chromium
    need promtool prometheus
    need systemd-analyze systemd
    need haproxy haproxy
    need nginx nginx-light
    need caddy caddy
    cargo fmt --version > /dev/null 2>&1 || rustup component add rustfmt || fail "rustfmt is needed"
    cargo clippy --version > /dev/null 2>&1 || rustup component add clippy || fail "clippy is needed"
    rustup target add "$static_target" || fail "the Rust target $static_target is needed"
    rustup run nightly rustc --version > /dev/null 2>&1 ||
        rustup toolchain install nightly --profile minimal || fail "a nightly toolchain is needed for fuzzing"
    cargo fuzz --version > /dev/null 2>&1 || cargo install cargo-fuzz --locked
    tests/clients/install.sh
}

format() { cargo fmt --check; }
lints() { cargo clippy --all-targets --locked -- -D warnings; }
documentation() { RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet; }
commits() { tests/commits.sh; }

static_build() {
    cargo build --release --locked --target "$static_target"
    printf 'static binary: %s bytes\n' "$(stat -c %s "$HOWLER_STATIC_BINARY")"
}

tests() {
    rm -rf "$target_dir/tmp/output"
    cargo test --locked --no-fail-fast -- --nocapture
}

# Searches all that the servers of the tests printed.
printed_secrets() {
    local logs
    logs=$(find "$target_dir/tmp/output" -name '*.log' | wc -l)
    [ "$logs" -gt 0 ] || fail "no output of any server was kept"
    if grep -rnE 'zq7-|AuthSession=|Basic [A-Za-z0-9+/]{8}|panicked' "$target_dir/tmp/output"; then
        fail "a server printed a password, a cookie or a panic"
    fi
    printf 'no password, no cookie and no panic in the output of %s servers\n' "$logs"
}

fuzz() { tests/fuzz.sh "$fuzz_seconds"; }

results=()
failed=0

# Runs a step in a shell of its own, in which the first failing command ends the step.
step() {
    local begun=$SECONDS result=ok
    printf '\n=== %s\n' "$1"
    (set -e; "$1")
    # shellcheck disable=SC2181 # `if (…)` would switch `set -e` off inside the step
    if [ $? -ne 0 ]; then
        result=FAILED
        failed=1
    fi
    results+=("$(printf '%-16s %-6s %4d s' "$1" "$result" $((SECONDS - begun)))")
}

printf 'tests/run.sh: about 25 minutes on two cores; less if target/ is warm\n'
for name in tools format lints documentation commits static_build tests printed_secrets fuzz; do step "$name"; done

printf '\n=== results\n'
printf '%s\n' "${results[@]}"
printf '%-16s %-6s %4d s\n' total "$([ $failed = 0 ] && echo ok || echo FAILED)" "$SECONDS"
exit $failed
