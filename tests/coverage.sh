#!/usr/bin/env bash
# Measures the coverage of the fuzz targets, with the committed seeds and the corpus of the last tests/fuzz.sh:
#
#     tests/coverage.sh [PATH…]
#
# Prints for each source file under PATH (default src/wire) how many of its regions and branches all targets
# together reach, and lists the lines with unreached ones. FUZZ_TARGET_DIR sets the build directory (default
# fuzz/target).
set -euo pipefail
cd "$(dirname "$0")/.."

if ! rustup run nightly rustc --version >/dev/null 2>&1; then
    echo "Coverage needs a nightly toolchain: rustup toolchain install nightly --profile minimal" >&2
    exit 2
fi
rustup component add llvm-tools --toolchain nightly >/dev/null 2>&1
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked

host=$(rustup run nightly rustc -vV | sed -n 's/^host: //p')
tools=$(rustup run nightly rustc --print sysroot)/lib/rustlib/$host/bin
target_dir=${FUZZ_TARGET_DIR:-fuzz/target}/coverage
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
profiles=() objects=()
for target in $(cargo fuzz list); do
    # Work on a copy: a concurrent tests/fuzz.sh replaces inputs by shorter ones.
    rm -rf "$work/inputs"
    cp -R "fuzz/seeds/$target" "$work/inputs"
    [ ! -d "fuzz/corpus/$target" ] || cp -R "fuzz/corpus/$target/." "$work/inputs" 2>/dev/null || true
    if ! RUSTFLAGS="-Zcoverage-options=branch" cargo +nightly fuzz coverage --dev --sanitizer none \
        --target-dir "$target_dir" "$target" "$work/inputs" >"$work/log" 2>&1; then
        tail -n 60 "$work/log" | cut -c -300
        echo "$target: FAILED" >&2
        exit 1
    fi
    profiles+=("fuzz/coverage/$target/coverage.profdata")
    objects+=(-object "$target_dir/$host/debug/$target")
done
"$tools/llvm-profdata" merge -sparse "${profiles[@]}" -o fuzz/coverage/all.profdata
"$tools/llvm-cov" export "${objects[@]}" -instr-profile=fuzz/coverage/all.profdata >fuzz/coverage/all.json 2>"$work/log" || {
    cat "$work/log" >&2
    exit 1
}
python3 - fuzz/coverage/all.json "$@" <<'PYTHON'
import json, os, sys
from collections import defaultdict

paths = [os.path.join(os.getcwd(), path) for path in sys.argv[2:] or ["src/wire"]]
regions, branches = defaultdict(lambda: defaultdict(int)), defaultdict(lambda: defaultdict(lambda: [0, 0]))
for function in json.load(open(sys.argv[1]))["data"][0]["functions"]:
    file = function["filenames"][0]
    if not any(os.path.commonpath([path, file]) == path for path in paths):
        continue
    # A generic function appears once per instance.
    for *place, count, _, _, kind in function["regions"]:
        if kind == 0:
            regions[file][tuple(place)] += count
    for *place, taken, passed, _, _, _ in function["branches"]:
        both = branches[file][tuple(place)]
        both[0] += taken
        both[1] += passed

unreached = []
print(f"{'':32} {'regions':>14} {'branches':>14}")
for file in sorted(regions):
    name = os.path.relpath(file)
    reached = sum(count > 0 for count in regions[file].values())
    ways = [way > 0 for both in branches[file].values() for way in both]
    print(f"{name:32} {f'{reached} of {len(regions[file])}':>14} {f'{sum(ways)} of {len(ways)}':>14}")
    source, lines = open(file).read().split("\n"), defaultdict(set)
    for (line, column, end, end_column), count in regions[file].items():
        if count == 0:
            text = source[line - 1][column - 1 : end_column - 1 if end == line else None].strip()
            lines[line].add(f"never: {text}")
    for (line, column, end, end_column), both in branches[file].items():
        text = source[line - 1][column - 1 : end_column - 1 if end == line else None].strip()
        # The region already reports a condition that is never evaluated.
        if both[0] + both[1] > 0 and 0 in both:
            lines[line].add(f"always {'false' if both[0] == 0 else 'true'}: {text}")
    unreached += [f"{name}:{line}: {text}" for line in sorted(lines) for text in sorted(lines[line])]
print("\n".join(["", *unreached]))
PYTHON
