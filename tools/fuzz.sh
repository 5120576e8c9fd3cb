#!/usr/bin/env bash
# Runs every fuzz target for so many executions each, two targets at a time with one
# worker each: much of the time of each is its build; go test takes one target a run. A
# count and not a time: go test calls a target failed ("context deadline exceeded") when
# the time is up while it minimises an input.
set -euo pipefail
export count=${1:-20000x}

# one runs a target, and prints what it said once it is done.
one() {
	local out status=0
	out=$(go test -run='^$' -fuzz="^$2\$" -fuzztime="$count" -fuzzminimizetime=100x -parallel=1 "$1" 2>&1) || status=255 # xargs starts no more
	printf 'fuzz %s %s\n%s\n' "$1" "$2" "$out"
	return $status
}
export -f one

grep -rlE --include='*_test.go' '^func Fuzz' . | sort | while read -r file; do
	for target in $(grep -oE '^func Fuzz[A-Za-z0-9_]*' "$file" | cut -c6-); do
		echo "$(dirname "$file") $target"
	done
done | xargs -P 2 -L 1 bash -c 'one "$@"' one
