#!/usr/bin/env bash
# Checks that the subjects of commits since the start of version 2.0.0 have at most 72 characters. Reports
# if there is no history to check, as in an unpacked archive.
set -euo pipefail
cd "$(dirname "$0")/.."

first=eed988c
longest=72

if [ "$(git rev-parse --show-toplevel 2> /dev/null)" != "$PWD" ]; then
    echo "NOT CHECKED: commit subjects, because this is no clone of the repository"
    exit 0
fi
range="$first..HEAD"
if ! git cat-file -e "$first^{commit}" 2> /dev/null; then
    echo "a shallow clone: only the last commit is checked"
    range="-1"
fi
# ${#subject} counts characters in a UTF-8 locale only.
wrong=$(LC_ALL=C.UTF-8 bash -c '
    git log --no-merges --format="%h %s" "$1" | while read -r hash subject; do
        if [ "${#subject}" -gt "$2" ]; then echo "$hash: ${#subject} characters: $subject"; fi
    done' _ "$range" "$longest")
if [ -n "$wrong" ]; then
    printf 'commit subjects have at most %s characters:\n%s\n' "$longest" "$wrong" >&2
    exit 1
fi
echo "commit subjects: $(git rev-list --count HEAD ${range/#-1/-1}) checked, none over $longest characters"
