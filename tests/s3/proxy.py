"""A way to the S3 server that fails on purpose: answers are lost, requests come late, a condition is dropped.

It forwards whole requests, one a connection. A signature covers the host's name and the headers that it names, so the
client's `Host` header is forwarded as it came.
"""

from __future__ import annotations

import http.client
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

Fault = str
"""`lost`: it took effect, and the connection ends without an answer. `failed`: it took effect, and the answer is 500.
`unsent`: it took no effect, and the connection ends. `conflict`: it took no effect, and the answer is 409. `ignored`:
the answer is 200, as of a store that does not know conditions."""


class Proxy:
    """A server in front of another one.

    Args:
        target: the endpoint behind it.
        fault: says what goes wrong with a request, by its method and path; nothing if None.
    """

    def __init__(self, target: str, fault: Callable[[str, str], Fault | None]) -> None:
        self.fault, self.host = fault, urlsplit(target).netloc
        self.seen: list[tuple[str, str, Fault | None]] = []
        """Each request: its method, path and fault."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def _pass_on(self) -> None:
        self.close_connection = True
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.fault(self.command, self.path)
        proxy.seen.append((self.command, self.path, fault))
        if fault == "unsent":
            return
        if fault == "conflict":
            self._answer(409, [], b"<Error><Code>ConditionalRequestConflict</Code></Error>")
            return
        if fault == "ignored":
            self._answer(200, [("ETag", '"0"')], b"")
            return
        with closing(http.client.HTTPConnection(proxy.host, timeout=30)) as connection:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OURS]
        if fault == "lost":
            return
        if fault == "failed":
            self._answer(500, [], b"<Error><Code>InternalError</Code></Error>")
            return
        length = int(answer.getheader("Content-Length") or 0) if self.command == "HEAD" else len(data)
        self._answer(answer.status, headers, data, length=length)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on  # noqa: N815  # the library's names

    def log_message(self, *_: Any) -> None:
        """Nothing."""


_OURS = {"content-length", "connection", "transfer-encoding"}
