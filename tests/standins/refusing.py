"""AWS that refuses: a server that answers every request with one error, as S3, Athena and Glue give it.

Its message is the worst that a service could send: it repeats what it knows of the credentials, as S3 does of a wrong signature.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Refusing(ThreadingHTTPServer):
    """`code` and `status` are those of the next answers; `asked` is the number of requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.code, self.status, self.asked = "AccessDenied", 403, 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Refusing

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked += 1
        known = "\n".join(f"{name}:{value}" for name, value in self.headers.items() if name.lower() in ("authorization", "x-amz-security-token"))
        message = f"The request is refused. The canonical request:\n{known}"
        if "X-Amz-Target" in self.headers:
            body, kind = json.dumps({"__type": self.server.code, "message": message}).encode(), "application/x-amz-json-1.1"
        else:
            body, kind = f"<Error><Code>{self.server.code}</Code><Message>{message}</Message></Error>".encode(), "application/xml"
        self.send_response(self.server.status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.server.status == 301:
            self.send_header("x-amz-bucket-region", "eu-west-9")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Handler, f"do_{method}", _Handler._refuse)


@contextlib.contextmanager
def refusing_server() -> Iterator[Refusing]:
    server = Refusing()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
