#!/usr/bin/env bash
# buf breaking against the last release tag, once there is one.
set -euo pipefail
buf=$1
tag=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)
if [ -z "$tag" ]; then
	echo "buf breaking: no release tag yet, nothing to compare with"
	exit 0
fi
"$buf" breaking --against ".git#tag=$tag"
