"""A proxy before an HTTP server: it refuses, loses, cuts off or delays what passes through it."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What happens to a request: a number is the status of an answer given instead of passing it on.
# DROP passes it on and closes the connection without the answer, CUT passes half of its body on,
# HOLD never answers.
DROP, CUT, HOLD = "drop", "cut", "hold"
Rule = Callable[[str], int | str | None]
PREFIX = re.compile(r"^/(ajax-)?api/2\.0/mlflow(-artifacts)?/")
NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


def kind_of(method: str, path: str) -> str:
    """The kind of a request, such as `POST runs/create`, or `PUT artifacts` for any artefact."""
    short = PREFIX.sub("", path.partition("?")[0])
    if "mlflow-artifacts" in path:
        short = "artifacts"
    return f"{method} {re.sub(r'/m-[0-9a-f]+', '/*', short)}"


class Proxy:
    """Passes requests on to a port of this machine, except as `rule` decides by their kind."""

    def __init__(self, target: int) -> None:
        self.target, self.asked = target, list[str]()
        self.rule: Rule = lambda kind: None
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.up()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Starts to listen, on the same port as before."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                proxy.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Stops listening: connections are refused."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answers one request as the rule says."""
        kind = kind_of(request.command, request.path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Transfer-Encoding") == "chunked":
            body = _chunks(request)
        self.asked.append(kind)
        what = self.rule(kind)
        request.close_connection = True
        if isinstance(what, int):
            request.send_response(what)
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif what == HOLD:
            while self._server is not None:
                time.sleep(0.05)
        elif what == CUT:
            self._cut(request, body)
        else:
            answer, content = self._asked(request, body)
            if what != DROP:
                _answer(request, answer, content)

    def _asked(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[http.client.HTTPResponse, bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.target, timeout=120)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in NOT_PASSED_ON}
        server.request(request.command, request.path, body or None, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        return answer, content

    def _cut(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        server = http.client.HTTPConnection("127.0.0.1", self.target, timeout=120)
        server.putrequest(request.command, request.path)
        server.putheader("Content-Length", str(len(body)))
        server.endheaders()
        server.send(body[: len(body) // 2])
        server.close()


def _chunks(request: BaseHTTPRequestHandler) -> bytes:
    body = b""
    while size := int(request.rfile.readline().partition(b";")[0], 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


def _answer(
    request: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, content: bytes
) -> None:
    request.send_response(answer.status)
    for key, value in answer.getheaders():
        if key.lower() not in NOT_PASSED_ON:
            request.send_header(key, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)
