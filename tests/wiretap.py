"""A tap on loopback: passes every byte on, and keeps what went up."""

from __future__ import annotations

import socket
import struct
import threading
from collections import defaultdict
from contextlib import suppress

from google.protobuf.message import DecodeError

from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.head import Head
from edge_agg.contract.v1 import collector_pb2 as pb

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Wiretap:
    """Listens on a free port of loopback and forwards each connection to `target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.sent: list[bytearray] = []
        """What each connection sent up, byte for byte."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no further connection."""
        self._server.close()

    def requests(self) -> list[pb.PushReleasesRequest]:
        """Every batch of releases that went up, read out of the HTTP/2 frames."""
        return [pb.PushReleasesRequest.FromString(m) for m in self._sent() if not _is_head(m)]

    def heads(self) -> list[pb.SayHeadRequest]:
        """Every head that was said."""
        return [pb.SayHeadRequest.FromString(m) for m in self._sent() if _is_head(m)]

    def _sent(self) -> list[bytes]:
        return [m for bytes_ in self.sent for m in _messages(bytes(bytes_))]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self.sent.append(bytearray())
                threading.Thread(target=_join, args=(near, self._target, self.sent[-1]), daemon=True).start()


def _join(near: socket.socket, target: int, keep: bytearray) -> None:
    with near, socket.create_connection(("127.0.0.1", target)) as far:
        down = threading.Thread(target=_pump, args=(far, near, None), daemon=True)
        down.start()
        _pump(near, far, keep)
        down.join()


def _pump(near: socket.socket, far: socket.socket, keep: bytearray | None) -> None:
    with suppress(OSError):
        while data := near.recv(65536):
            if keep is not None:
                keep += data
            far.sendall(data)
    for end in (near, far):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _is_head(message: bytes) -> bool:
    """Which of the two an agent says: a head has a text where a batch has a release."""
    try:
        Head.read(pb.SayHeadRequest.FromString(message))
    except (DecodeError, MalformedRelease):
        return False
    return True


def _messages(stream: bytes) -> list[bytes]:
    """The gRPC messages in one client's HTTP/2 bytes: each stream's DATA frames, put together and cut by length."""
    assert stream.startswith(_PREFACE)
    at, data = len(_PREFACE), defaultdict[int, bytearray](bytearray)
    while at + 9 <= len(stream):
        length = int.from_bytes(stream[at : at + 3], "big")
        kind, flags = stream[at + 3], stream[at + 4]
        if kind == 0:
            assert not flags & 0x8, "no padding is expected"
            data[int.from_bytes(stream[at + 5 : at + 9], "big")] += stream[at + 9 : at + 9 + length]
        at += 9 + length
    found = []
    for body in data.values():
        while body:
            compressed, size = struct.unpack_from(">BI", body)
            assert compressed == 0
            found.append(bytes(body[5 : 5 + size]))
            del body[: 5 + size]
    return found
