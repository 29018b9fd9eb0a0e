#!/usr/bin/env bash
# Fuzzes every target for SECONDS each (default 20), starting from the committed seeds:
#
#     tests/fuzz.sh [SECONDS] [TARGET…]
#
# Prints a line per target. A finding ends the run with status 1, after the path of the input that causes
# it. FUZZ_TARGET_DIR sets the build directory (default fuzz/target).
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-20}
shift $(($# > 0 ? 1 : 0))
if [[ ! $seconds =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: tests/fuzz.sh [SECONDS] [TARGET…]" >&2
    exit 2
fi
if ! rustup run nightly rustc --version >/dev/null 2>&1; then
    echo "Fuzzing needs a nightly toolchain: rustup toolchain install nightly --profile minimal" >&2
    exit 2
fi
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked

target_dir=${FUZZ_TARGET_DIR:-fuzz/target}
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(cargo fuzz list)
cargo +nightly fuzz build --target-dir "$target_dir"

# Longest input in bytes: heads are limited to 16 KiB, and inputs longer than necessary only cost speed.
max_len() {
    case $1 in
        request_head | feed_reader) echo 20000 ;;
        lookup | positions) echo 2048 ;;
        websocket) echo 2048 ;;
        *) echo 1024 ;;
    esac
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
    # Every run starts from the seeds only, so that runs are comparable.
    rm -rf "fuzz/corpus/$target"
    mkdir -p "fuzz/corpus/$target"
    if ! cargo +nightly fuzz run --target-dir "$target_dir" "$target" \
        "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len="$(max_len "$target")" -timeout=60 \
        -dict="fuzz/dictionaries/$target.dict" -print_final_stats=1 >"$log" 2>&1; then
        tail -n 60 "$log"
        artifact=$(sed -n 's/.*Test unit written to \(.*\)$/\1/p' "$log" | tail -n 1)
        echo "$target: FAILED, the input is in ${artifact:-none (it did not start)}" >&2
        exit 1
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$target: ok, $executions executions in $seconds s"
done
