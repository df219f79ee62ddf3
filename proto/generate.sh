#!/bin/sh
# Writes the stubs of proto/ into the folder given (the repository's root by default). Needs grpcio-tools and mypy-protobuf.
set -eu
out=${1:-.}
python -m grpc_tools.protoc -Iproto --python_out="$out" --mypy_out=quiet:"$out" proto/edge_agg/contract/v1/*.proto
python -m grpc_tools.protoc -Iproto --grpc_python_out="$out" --mypy_grpc_out=quiet:"$out" \
  proto/edge_agg/contract/v1/collector.proto proto/edge_agg/contract/v1/enrollment.proto \
  proto/edge_agg/contract/v1/query.proto
