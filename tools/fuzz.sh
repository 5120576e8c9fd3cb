#!/usr/bin/env bash
# Runs every fuzz target for the given time each; go test takes one a run.
set -euo pipefail
time=${1:-5s}
grep -rlE --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
	dir=$(dirname "$file")
	for target in $(grep -oE '^func Fuzz[A-Za-z0-9_]*' "$file" | cut -c6-); do
		echo "fuzz $dir $target"
		go test -run='^$' -fuzz="^$target\$" -fuzztime="$time" "$dir"
	done
done
