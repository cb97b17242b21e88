"""A recording reverse proxy: it forwards every request to one upstream and keeps what passed.

The Tinker SDK talks to the upstream through it, so afterwards the exact bytes of every answer the SDK got
are known without touching the SDK. Bodies are kept as they went over the wire; `Exchange.content` is the
body after the Content-Encoding is undone, which is what "the result's bytes" means everywhere else.
"""

from __future__ import annotations

import gzip
import http.client
import json
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-connection"}
# http.client writes its own host and length. Of the encodings only gzip can be undone here without packages.
NOT_FORWARDED = HOP_BY_HOP | {"host", "content-length", "accept-encoding"}


@dataclass(frozen=True)
class Exchange:
    """One request and its answer. Header names are in lower case."""

    method: str
    path: str
    request_headers: dict[str, str]
    request_body: bytes
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> bytes:
        match self.headers.get("content-encoding", ""):
            case "gzip":
                return gzip.decompress(self.body)
            case "deflate":
                return zlib.decompress(self.body)
            case "" | "identity":
                return self.body
            case other:
                raise ValueError(f"cannot undo Content-Encoding {other}")

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    @property
    def asked_id(self) -> str | None:
        """The request id of a retrieve_future call, else None."""
        if not self.path.endswith("/retrieve_future"):
            return None
        return json.loads(self.request_body)["request_id"]

    @property
    def operation(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def given_id(self) -> str | None:
        """The request id that an endpoint gave out for work that it started, else None."""
        if self.method != "POST" or self.asked_id is not None or self.status != 200 or "json" not in self.content_type:
            return None
        answer = json.loads(self.content)
        return answer.get("request_id") if isinstance(answer, dict) else None

    def is_try_again(self) -> bool:
        if self.status == 408:
            return True
        return self.status == 200 and "json" in self.content_type and json.loads(self.content).get("type") == "try_again"


class RecordingProxy:
    """Listens on a free loopback port from construction on. Use it as a context manager."""

    def __init__(self, upstream: str, timeout: float = 90.0) -> None:
        target = urlsplit(upstream)
        host, port = target.hostname, target.port or 80
        lock, kept, proxy = threading.Lock(), [], self
        self._lock, self._kept = lock, kept
        # Called in the proxy's thread, before the client has the answer, with an operation and the id it was given.
        self.on_started: Callable[[str, str], None] | None = None

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.read_body()
                sent = {k: v for k, v in self.headers.items() if k.lower() not in NOT_FORWARDED}
                sent["Accept-Encoding"] = "gzip"
                upstream_conn = http.client.HTTPConnection(host, port, timeout=timeout)
                try:
                    upstream_conn.request(self.command, self.path, body=body, headers=sent)
                    answer = upstream_conn.getresponse()
                    data = answer.read()
                    headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP | {"content-length"}]
                finally:
                    upstream_conn.close()
                exchange = Exchange(
                    self.command,
                    self.path,
                    {k.lower(): v for k, v in self.headers.items()},
                    body,
                    answer.status,
                    {k.lower(): v for k, v in headers},
                    data,
                )
                with lock:
                    kept.append(exchange)
                if proxy.on_started and exchange.given_id is not None:
                    proxy.on_started(exchange.operation, exchange.given_id)
                self.send_response(answer.status, answer.reason)
                for name, value in headers:
                    if name.lower() not in ("server", "date"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def read_body(self) -> bytes:
                # The SDK's default transport sends every body chunked.
                if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():  # trailers
                    pass
                return b"".join(parts)

            do_GET = do_POST = do_PUT = do_DELETE = forward

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def exchanges(self) -> list[Exchange]:
        with self._lock:
            return list(self._kept)

    def answers(self, request_id: str) -> list[Exchange]:
        """The answers to every retrieve_future call for this id, in order."""
        return [e for e in self.exchanges() if e.asked_id == request_id]

    def final_answers(self) -> dict[str, Exchange]:
        """The last answer to each id that was retrieved, in the order of their first retrieval."""
        return {e.asked_id: e for e in self.exchanges() if e.asked_id is not None}

    def request_types(self) -> dict[str, str]:
        """The type that the SDK said each retrieved id is of."""
        asked = (e for e in self.exchanges() if e.asked_id is not None)
        return {e.asked_id: e.request_headers.get("x-tinker-request-type", "") for e in asked}

    def started(self) -> list[tuple[str, str]]:
        """The work that was started: the endpoint's name and the request id that it gave out, in order."""
        return [(e.operation, e.given_id) for e in self.exchanges() if e.given_id is not None]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> RecordingProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
