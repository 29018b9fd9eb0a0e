#!/bin/sh
# Installs the client libraries that tests/real_clients.rs drives: those of npm into node_modules beside this
# file, those of PyPI into virtual environments in cargo's target folder. Skips what is up to date.
#
#   install.sh           installs what is missing or out of date
#   install.sh --check   installs nothing; exits with code 1 if anything is missing or out of date
set -eu

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}
check=no
case ${1-} in
--check) check=yes ;;
'') ;;
*) echo "usage: install.sh [--check]" >&2 && exit 2 ;;
esac

fail() {
    echo "tests/clients/install.sh: $*" >&2
    exit 1
}

# current STAMP FILE: succeeds if the stamp was made for the present content of the file.
current() {
    [ -f "$1" ] && [ "$(cat "$1")" = "$(sha256sum <"$2")" ]
}

missing() {
    [ "$check" = no ] || fail "$1 is missing or out of date; run tests/clients/install.sh"
}

command -v node >/dev/null || fail "node is not installed (20 or newer is needed)"
[ "$(node -p 'parseInt(process.versions.node)')" -ge 20 ] || fail "node $(node -v) is too old (20 or newer is needed)"
command -v npm >/dev/null || fail "npm is not installed"
command -v python3 >/dev/null || fail "python3 is not installed"

stamp=$here/node_modules/.installed
if ! current "$stamp" "$here/package-lock.json"; then
    missing "node_modules"
    (cd "$here" && npm ci --ignore-scripts --no-audit --no-fund) || fail "npm ci failed"
    sha256sum <"$here/package-lock.json" >"$stamp"
fi

# Debian's python3 needs the package python3-venv (ensurepip) to make environments with pip.
ready_for_venv() {
    python3 -c 'import ensurepip, venv' 2>/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "python3 cannot make virtual environments: installing python3-venv" >&2
        { apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv; } >&2 ||
            fail "apt-get could not install python3-venv"
    fi
    python3 -c 'import ensurepip, venv' || fail "python3 -m venv does not work: install python3-venv"
}

for version in v4 v5; do
    wanted=$here/requirements-$version.txt
    folder=$target/py-$version
    stamp=$folder/.installed
    if ! current "$stamp" "$wanted"; then
        missing "$folder"
        ready_for_venv
        rm -rf "$folder"
        mkdir -p "$target"
        python3 -m venv "$folder" || fail "python3 -m venv $folder failed"
        "$folder/bin/pip" install --quiet --disable-pip-version-check -r "$wanted" || fail "pip could not install $wanted"
        sha256sum <"$wanted" >"$stamp"
    fi
done
