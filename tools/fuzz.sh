#!/usr/bin/env bash
# Runs every fuzz target for so many executions each; go test takes one target a
# run. A count and not a time: go test calls a target failed ("context deadline
# exceeded") when the time is up while it minimises an input.
set -euo pipefail
count=${1:-20000x}
grep -rlE --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
	dir=$(dirname "$file")
	for target in $(grep -oE '^func Fuzz[A-Za-z0-9_]*' "$file" | cut -c6-); do
		echo "fuzz $dir $target"
		go test -run='^$' -fuzz="^$target\$" -fuzztime="$count" -fuzzminimizetime=100x "$dir"
	done
done
