"""Guards the server: hosts, token, and limits on bodies, time and connections.

`Guard` is middleware around the application, `Connection` replaces uvicorn's. The body of a refused
request is read to its end, within bounds: a client that is still sending when the connection closes
would see a reset instead of the answer.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.verbs.serve.bodies import BAD_REQUEST, SMALL, TOO_LARGE, WRONG_KIND, Refused

BODIES = 64_000_000  # bytes of large bodies that are kept at once, over all requests
WORKERS = 8  # requests that are read and answered in threads at once
CONNECTIONS = 512  # at once; each may hold a small body and 300 kB of unread data
WAIT_S = 5.0  # longest wait of a request for its turn
HEAD_S = 10.0  # in which a request's first line and headers must arrive
BODY_S = 30.0  # in which its body must arrive
DRAIN_S = 5.0  # for which the body of a refused request is still read
DRAINED = 64_000_000  # most bytes of it

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = ("/ping", "/health")  # need no token and tell nothing

UNAUTHORISED, FORBIDDEN, TIMED_OUT, BUSY = 401, 403, 408, 503

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may send requests.

    `hosts` are the names, in lower case, by which the server may be addressed; `anywhere` adds the
    address at which a connection arrives. If there is a `token`, every request must send it.
    """

    hosts: frozenset[str] = LOOPBACK
    anywhere: bool = False
    token: str | None = None


class Guard:
    """ASGI middleware that refuses requests without access, and drains their bodies."""

    def __init__(self, app: ASGIApplication, access: Access) -> None:
        self._app = app
        self._access = access
        self._token = None if access.token is None else f"bearer {access.token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on to the application, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        body = _Body(headers, receive, send)
        if refused := self._refusal(scope, headers):
            await _answer(body.send, *refused)
        elif body.expected:
            await self._app(scope, body.receive, body.send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        # A page of another site could reach this machine by making a name of its own point here.
        host = headers.get(b"host")
        if host is not None and not self._knows(name := _host(host.decode("latin-1")), scope):
            return FORBIDDEN, (
                f"this server is not asked for as {name[:80]!r}; "
                "allow the name with serve.allowed_hosts=[…]"
            )
        origin = headers.get(b"origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD"):
            name = _host(origin.decode("latin-1").partition("://")[2])
            if not self._knows(name, scope):
                return FORBIDDEN, (
                    "pages of other sites may not ask; let one proxy serve the page and pass its "
                    "requests on, and allow the proxy's name with serve.allowed_hosts=[…]"
                )
        if self._token is not None and scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(kind.lower() + b" " + given.strip(), self._token):
                return UNAUTHORISED, "send the server's token: 'Authorization: Bearer …'"
        return None

    def _knows(self, name: str, scope: Scope) -> bool:
        if name in self._access.hosts:
            return True
        arrived = (scope.get("server") or ("",))[0].removeprefix("::ffff:")
        return self._access.anywhere and name == arrived


def _host(authority: str) -> str:
    """The name in `name:port`, `[::1]:port` or either alone, in lower case."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().rstrip(".")


class _Body:
    """A request's body while it arrives; drains what the application does not read."""

    def __init__(self, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        length = headers.get(b"content-length", b"0")
        self.expected = b"transfer-encoding" in headers or length.strip(b"0") != b""
        self._unread, self._drains = self.expected, False
        # A client that waits for "100 Continue" does not send a body that is only drained.
        self._held_back = headers.get(b"expect", b"").lower() == b"100-continue"
        self._receive, self._send = receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        self._held_back = False
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if not self._unread:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._drains = message["status"] != TIMED_OUT and not self._held_back
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            await self._send({**message, "headers": headers})
        elif message.get("more_body", False) or not self._drains:
            await self._send(message)
        else:  # sends the whole answer, but marks its end only after draining
            await self._send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._drain()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drain(self) -> None:
        drained = 0
        while drained <= DRAINED:
            message = await self._receive()
            drained += len(message.get("body", b""))
            if not message.get("more_body", False):
                return


async def _answer(send: Send, status: int, reason: str) -> None:
    text = json.dumps({"error": reason}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
    if status == UNAUTHORISED:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})


class Room:
    """A number of units, bytes or workers, that concurrent requests share.

    A request that finds too few of them free waits for up to WAIT_S seconds.
    """

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taking(self, wanted: int) -> AsyncIterator[None]:
        """Holds `wanted` units, at most all there are, until the block ends.

        Raises:
            Refused: other requests held them for too long.
        """
        wanted = min(wanted, self._most)
        if wanted > self._free:
            await self._wait(wanted)
        self._free -= wanted
        try:
            yield
        finally:
            self._free += wanted
            async with self._changed:
                self._changed.notify_all()

    async def _wait(self, wanted: int) -> None:
        try:
            async with asyncio.timeout(WAIT_S), self._changed:
                await self._changed.wait_for(lambda: wanted <= self._free)
        except TimeoutError:
            raise Refused(BUSY, "too many requests are being answered; ask again") from None


@asynccontextmanager
async def body_of(request: Request, room: Room, most: int) -> AsyncIterator[bytes]:
    """A request's body of at most `most` bytes, which takes its size of `room` during the block.

    Small bodies take nothing. One that does not tell its size takes `most` once it is no longer
    small.

    Raises:
        Refused: it is compressed, larger, does not arrive in time, or finds too little room.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        reason = f"the body is encoded as {encoding}; send it as it is, without Content-Encoding"
        raise Refused(WRONG_KIND, reason)
    body, parts = bytearray(), request.stream()
    loop = asyncio.get_running_loop()
    until = loop.time() + BODY_S
    if "transfer-encoding" in request.headers:
        await _read(parts, body, until, most, enough=SMALL)
        size = most if len(body) > SMALL else 0
    else:
        size = int(request.headers.get("content-length", "0"))
    if size > most:
        raise _too_large(most)
    asked = loop.time()
    async with room.taking(size) if size > SMALL else nullcontext():
        until += loop.time() - asked  # a request that waits for its turn is not late
        await _read(parts, body, until, most)
        content = bytes(body)
        del body  # else a large one would be held twice
        yield content


async def _read(
    parts: AsyncIterator[bytes],
    body: bytearray,
    until: float,
    most: int,
    *,
    enough: float = math.inf,
) -> None:
    """Adds the rest of a body of at most `most` bytes; stops at more than `enough` bytes.

    It must have arrived by the loop's time `until`.
    """
    try:
        async with asyncio.timeout_at(until):
            async for part in parts:
                body += part
                if len(body) > most:
                    raise _too_large(most)
                if len(body) > enough:
                    return
    except TimeoutError:
        raise Refused(TIMED_OUT, f"the body did not arrive within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise Refused(BAD_REQUEST, "the connection ended before the body did") from None


def _too_large(most: int) -> Refused:
    return Refused(TOO_LARGE, f"the body exceeds {most / 1e6:g} MB; send fewer images at once")


class Connection(H11Protocol):
    """uvicorn's connection, closed if a request's first line and headers do not arrive in time.

    uvicorn itself limits their size and how long a connection idles between requests.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request; closes a connection beyond CONNECTIONS."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.close()
        else:
            self._late = self.loop.call_later(HEAD_S, self._close)

    def data_received(self, data: bytes) -> None:
        """Reads data; between two requests the wait begins with the first byte of the second."""
        super().data_received(data)
        if self._waits_for_head():
            self._late = self._late or self.loop.call_later(HEAD_S, self._close)
        elif self._late is not None:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting."""
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _waits_for_head(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body)

    def _close(self) -> None:
        if self._waits_for_head() and not self.transport.is_closing():
            self.transport.close()
