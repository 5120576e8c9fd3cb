#!/usr/bin/env bash
# buf breaking against what upgrades are tried from and back to: the last release
# tag or, before the first, the baseline of integration/servers/baseline.go.
# The first argument is buf, which is looked up where there is none.
set -euo pipefail
buf=${1:-buf}
cd "$(dirname "$0")/.."
against=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)
if [ -z "$against" ]; then
	against=$(sed -n 's/^const Baseline = "\([0-9a-f]*\)"$/\1/p' integration/servers/baseline.go)
fi
if ! git cat-file -e "$against^{commit}" 2>/dev/null; then
	echo "buf breaking: the clone lacks $against, nothing to compare with"
	exit 0
fi
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
git archive "$against" proto buf.yaml | tar -x -C "$tree"
"$buf" breaking --against "$tree"
