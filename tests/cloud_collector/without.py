"""Run the collector where the kernel forbids a system call, as a service's filter does: EPERM, for all it starts.

`python -m tests.cloud_collector.without setpriority serve collector.toml`
"""

from __future__ import annotations

import ctypes
import platform
import sys

CALLS = {"x86_64": {"setpriority": 141}, "aarch64": {"setpriority": 140}}
"""The numbers of what can be forbidden, by machine."""
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


class _Step(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def forbid(call: str) -> None:
    """Have a system call refused to this process and all that it starts, for good; raises OSError."""
    number = CALLS[platform.machine()][call]
    words = [(_LOAD, 0, 0, 0), (_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    program = _Program(len(words), (_Step * len(words))(*(_Step(*one) for one in words)))
    libc = ctypes.CDLL(None, use_errno=True)
    for words_of in ((_NO_NEW_PRIVILEGES, 1, 0), (_SECCOMP, _FILTER, ctypes.byref(program))):
        if libc.prctl(*words_of, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "the kernel takes no filter")


if __name__ == "__main__":
    forbid(sys.argv.pop(1))
    from cloud_collector.__main__ import main

    main()
