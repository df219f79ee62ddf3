#!/bin/sh
# Lint; breaking changes against the wire as last released (baseline.binpb); drift of the committed stubs.
set -eu
(cd proto && buf lint && buf breaking --against baseline.binpb)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
sh proto/generate.sh "$fresh"
for stub in "$fresh"/edge_agg/contract/v1/*; do
  name=edge_agg/contract/v1/$(basename "$stub")
  cmp -s "$stub" "$name" || { echo "$name is not what proto/ says: run make proto" >&2; exit 1; }
done
