#!/usr/bin/env bash
# Installs what is missing and runs every check of this project: format, lints, the static build, unit
# and integration tests with real clients, a short fuzz of every target, and a search of all
# that the servers printed for passwords and cookies.
#
#   tests/run.sh                   everything
#   FUZZ_SECONDS=60 tests/run.sh   a longer fuzz of each target (default 10)
#
# Needs rustup with the stable and a nightly toolchain, Node.js 20 with npm, Python 3 with venv; on Debian as root
# it installs packages by itself.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n=== %s\n' "$*"; }
fail() { printf 'tests/run.sh: %s\n' "$*" >&2; exit 1; }

# Installs a Debian package where its command is missing; without root and apt it says what is needed.
need() {
    command -v "$1" > /dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || fail "$1 is needed (Debian package $2)"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2" > /dev/null || fail "$2 cannot be installed"
}

step "tools"
command -v cargo > /dev/null || fail "cargo is needed (https://rustup.rs)"
need cc gcc
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
PATH="$PATH:/usr/sbin" need haproxy haproxy
PATH="$PATH:/usr/sbin" need nginx nginx-light
need caddy caddy
rustup component add rustfmt clippy > /dev/null 2>&1 || cargo clippy --version > /dev/null || fail "clippy is needed"
machine="$(uname -m)"
static_target="$machine-unknown-linux-musl"
rustup target add "$static_target" > /dev/null || fail "the Rust target $static_target is needed"
rustup toolchain list | grep -q '^nightly' || fail "a nightly toolchain is needed for fuzzing (rustup toolchain install nightly)"
cargo fuzz --version > /dev/null 2>&1 || cargo install cargo-fuzz --locked
tests/clients/install.sh

step "format and lints"
cargo fmt --check
cargo clippy --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet

step "static build"
cargo build --release --locked --target "$static_target"
target_dir="${CARGO_TARGET_DIR:-target}"
export HOWLER_STATIC_BINARY="$PWD/$target_dir/$static_target/release/couchdb-howler"
case "$target_dir" in /*) HOWLER_STATIC_BINARY="$target_dir/$static_target/release/couchdb-howler" ;; esac
printf 'static binary: %s bytes\n' "$(stat -c %s "$HOWLER_STATIC_BINARY")"

step "tests"
rm -rf "$target_dir/tmp/output"
cargo test --locked -- --nocapture

step "what the servers printed"
logs=$(find "$target_dir/tmp/output" -name '*.log' | wc -l)
[ "$logs" -gt 0 ] || fail "no output of any server was kept"
if grep -rnE 'zq7-|AuthSession=|Basic [A-Za-z0-9+/]{8}|panicked' "$target_dir/tmp/output"; then
    fail "a password, a cookie or a panic stands in what a server printed"
fi
printf 'no password, no cookie and no panic in the output of %s servers\n' "$logs"

step "fuzz"
tests/fuzz.sh "${FUZZ_SECONDS:-10}"

step "all is well"
