"""Arrow streams and zstd frames by hand: what the tests of the payload take apart and put together again."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import zstandard

if TYPE_CHECKING:
    import random

END = struct.pack("<II", 0xFFFFFFFF, 0)


def pack(stream: bytes) -> bytes:
    """One zstd frame with its content size, as the encoder makes it."""
    return zstandard.ZstdCompressor(level=1).compress(stream)


def unpack(payload: bytes) -> bytes:
    """The Arrow stream inside a payload that we made ourselves."""
    return zstandard.ZstdDecompressor().decompress(payload)


def messages(stream: bytes) -> list[bytes]:
    """Split a well-formed stream into its messages, by pyarrow's own reader."""
    reader = pa.ipc.MessageReader.open_stream(stream)
    return [message.serialize().to_pybytes() for message in reader]


def written(batch: Any, *, schema: Any = None, metadata: Any = None, **options: Any) -> bytes:
    """A stream of one batch, by pyarrow's writer."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema or batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch, custom_metadata=metadata)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def patched(message: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    """A message with some bytes of its metadata replaced."""
    assert old in message
    return message.replace(old, new, count)


def qq(first: int, second: int) -> bytes:
    """A pair of int64: a field node, or a buffer."""
    return struct.pack("<qq", first, second)


def flip(payload: bytes, chance: random.Random) -> bytes:
    """Change one to four bytes, most often one bit of one."""
    changed = bytearray(payload)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(changed))
        changed[at] = changed[at] ^ (1 << chance.randrange(8)) if chance.random() < 0.7 else chance.randrange(256)
    return bytes(changed)


class Stand:
    """Stands in for a module, which it passes everything on to."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)
