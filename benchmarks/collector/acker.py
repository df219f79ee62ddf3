"""A server that only acks: what gRPC, TLS and Python cost before any of our work, for the ratio.

Place: stands in for the collector in the same run, with the same certificates; it parses and hashes, keeps nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from edge_agg.contract.v1 import collector_pb2
from edge_agg.contract.v1.collector_pb2_grpc import CollectorServiceServicer, add_CollectorServiceServicer_to_server

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class Acker(CollectorServiceServicer):
    """Accepts everything."""

    async def PushReleases(  # noqa: N802  # the contract's name
        self, request: collector_pb2.PushReleasesRequest, context: Context
    ) -> collector_pb2.PushReleasesResponse:
        """A receipt for each release."""
        del context
        receipts = [
            collector_pb2.Receipt(
                release_hash=hashlib.sha256(one.header).digest(), outcome=collector_pb2.OUTCOME_ACCEPTED
            )
            for one in request.releases
        ]
        return collector_pb2.PushReleasesResponse(receipts=receipts)

    async def SayHead(  # noqa: N802  # the contract's name
        self, request: collector_pb2.SayHeadRequest, context: Context
    ) -> collector_pb2.SayHeadResponse:
        """It knows every journal."""
        del request, context
        return collector_pb2.SayHeadResponse(standing=collector_pb2.STANDING_KNOWN)


async def serve(folder: Path, listen: str) -> None:
    """Listen with the folder's certificates until killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2**24), ("grpc.so_reuseport", 1)])
    add_CollectorServiceServicer_to_server(Acker(), server)
    pair = ((folder / "server" / "key.pem").read_bytes(), (folder / "server" / "cert.pem").read_bytes())
    credentials = grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes(), require_client_auth=True)
    port = server.add_secure_port(listen, credentials)
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
