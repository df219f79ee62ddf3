"""What an address is, and which ones both ends may use without TLS: the loopback ones, and nothing else."""

from __future__ import annotations

import ipaddress
import re

_ADDRESS = re.compile(r"(?P<host>[^\[\]/:]+|\[[^\[\]/]+\]):(?P<port>[0-9]{1,5})")


def is_address(address: str) -> bool:
    """Whether a text is `host:port` or `[v6]:port`; no name is looked up."""
    match = _ADDRESS.fullmatch(address)
    return match is not None and int(match["port"]) <= 65535


def is_loopback(address: str) -> bool:
    """Whether `host:port` (or `[v6]:port`) names this machine's loopback interface; no name is looked up."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        return False
    if match["host"] == "localhost":
        return True
    try:
        return ipaddress.ip_address(match["host"].strip("[]")).is_loopback
    except ValueError:
        return False
