#!/usr/bin/env bash
# Runs every fuzz target for so many executions each, two packages at a time with one
# worker each. A package is built once: go test builds it for each target, which takes
# longer than many targets run. A count and not a time: a target counts as failed ("context
# deadline exceeded") when the time is up while it minimises an input.
set -euo pipefail
export count=${1:-20000x}
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
cache=$(go env GOCACHE)/fuzz
export bin cache

# package runs the targets of a folder, in it as go test does: what fails one is kept in
# its testdata/fuzz. It prints what each said once it is done.
package() {
	local dir=$1 test path target out status=0
	shift
	path=$(go list "$dir")
	test=$bin/${path//\//-}
	go test -c -vet=off -fuzz=. -o "$test" "$dir" || return 255 # xargs starts no more
	for target; do
		out=$(cd "$dir" && "$test" -test.run='^$' -test.fuzz="^$target\$" -test.fuzztime="$count" -test.fuzzminimizetime=100x \
			-test.parallel=1 -test.fuzzcachedir="$cache/$path" 2>&1) || status=255
		printf 'fuzz %s %s\n%s\n' "$dir" "$target" "$out"
		[ $status = 0 ] || return $status
	done
	rm "$test"
}
export -f package

# A line for each folder: the folder and its targets.
grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed -E 's|/[^/]*:func | |' | sort |
	awk '{ targets[$1] = targets[$1] " " $2 } END { for (dir in targets) print dir targets[dir] }' | sort |
	xargs -P 2 -L 1 bash -c 'package "$@"' package
