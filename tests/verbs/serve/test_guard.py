"""Who may ask, and how much requests may take together: over ASGI, and over sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request

from pipeline.data.values import Array
from pipeline.verbs.serve import app as application
from pipeline.verbs.serve import guard
from pipeline.verbs.serve.app import Limits, create_app
from pipeline.verbs.serve.bodies import SMALL, Refused, images_in, memory_to_read
from pipeline.verbs.serve.guard import LOOPBACK, Access, Connection, Room
from tests.stress.matrix import matrix
from tests.verbs.serve.test_app import LIMITS, ask, brightness, image, running, served

TOKEN = "0123456789abcdef-token"
GOOD = json.dumps({"inputs": [image(255)]}).encode()
LARGE = json.dumps({"inputs": [image(1)] * 3000}).encode()
MIB = 2**20
CHUNKED = {"transfer-encoding": "chunked"}

APP = create_app(served(), LIMITS)


def asked(app: Starlette, body: bytes = GOOD, **headers: str) -> tuple[int, Any]:
    """The status and content of the answer to POST /invocations, without a network."""
    return over_asgi(app, "POST", "/invocations", body, headers)[:2]


def over_asgi(
    app: Starlette, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, Any, dict[bytes, bytes]]:
    given = {"content-type": "application/json", "content-length": str(len(body))} | headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
        "server": ("10.1.2.3", 5001),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    assert b"\n" not in content
    return sent[0]["status"], json.loads(content), dict(sent[0]["headers"])


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost.:5001", "127.0.0.1:5001", "[::1]:5001", "proxy.lan:80"]
)
def test_a_request_to_a_name_of_the_server_is_answered(host: str) -> None:
    app = create_app(served(), LIMITS, access=Access(hosts=LOOPBACK | {"proxy.lan"}))
    assert asked(app, host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example:5001", "localhost.evil.example", "10.1.2.3"),
        *("", "x@localhost", "[", "localhost/", "\xff", "::1", "evil.example#localhost"),
    ],
)
@matrix(41)
def test_a_request_to_another_name_is_refused(host: str) -> None:
    status, said = asked(APP, host=host)
    assert status == 403
    assert "serve.allowed_hosts" in said["error"]
    assert over_asgi(APP, "GET", "/version", b"", {"host": host})[0] == 403


@matrix(41)
def test_a_server_at_every_address_goes_by_the_one_a_connection_arrives_at() -> None:
    app = create_app(served(), LIMITS, access=Access(anywhere=True))
    assert asked(app, host="10.1.2.3:5001")[0] == 200
    assert asked(app, host="10.1.2.4:5001")[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1.x.y:80"])
@matrix(41)
def test_a_page_of_another_site_may_not_post(origin: str) -> None:
    status, said = asked(APP, host="localhost", origin=origin)
    assert (status, "pages of other sites may not ask; let one proxy" in said["error"]) == (
        403,
        True,
    )
    assert over_asgi(APP, "GET", "/ping", b"", {"origin": origin})[0] == 200


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:1"])
def test_a_page_of_this_machine_may_post(origin: str) -> None:
    assert asked(APP, origin=origin)[0] == 200


@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"],
)
@matrix(42)
def test_without_the_token_nothing_but_health_is_told(given: str | None) -> None:
    app = create_app(served(), LIMITS, access=Access(token=TOKEN))
    headers = {} if given is None else {"authorization": given}
    status, said, answered = over_asgi(app, "POST", "/invocations", GOOD, headers)
    assert (status, answered[b"www-authenticate"]) == (401, b"Bearer")
    assert TOKEN not in said["error"]
    assert over_asgi(app, "GET", "/version", b"", headers)[0] == 401
    assert over_asgi(app, "GET", "/health", b"", headers)[0] == 200


@pytest.mark.parametrize("kind", ["Bearer", "bearer"])
def test_with_the_token_requests_are_answered(kind: str) -> None:
    app = create_app(served(), LIMITS, access=Access(token=TOKEN))
    assert asked(app, authorization=f"{kind} {TOKEN}")[0] == 200


# Malformed requests

ODD = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=0, max_value=255),
        st.integers(min_value=2**62, max_value=2**65),
        st.floats(),
        st.text(),
        st.text(st.characters(categories=["Cs"])),
    ),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@pytest.mark.slow
@settings(max_examples=80)
@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        ODD.map(lambda value: json.dumps(value).encode()),
        ODD.map(lambda value: json.dumps({"inputs": value}).encode()),
        st.lists(ODD).map(lambda value: json.dumps({"instances": [value, value]}).encode()),
        st.lists(ODD, min_size=2, max_size=2).map(
            lambda two: b'{"inputs": %b, "inputs": %b}' % tuple(json.dumps(x).encode() for x in two)
        ),
    )
)
def test_whatever_is_sent_is_answered_with_a_reason_and_never_a_failure(body: bytes) -> None:
    status, said = asked(APP, body)
    if status == 200:
        assert all(type(value) is not float for value in json.loads(body).values())
    else:
        assert (400 <= status < 500, said.keys()) == (True, {"error"})
        assert said["error"]


@pytest.mark.parametrize("depth", [65, 300, 900, 5_000, 60_000])
@pytest.mark.parametrize(
    ("start", "middle", "end"),
    [
        (b"[", b"1", b"]"),
        (b"[", b'"x"', b"]"),
        (b'{"a":', b"null", b"}"),
        (b'[{"a":', b"true", b"}]"),
    ],
)
def test_however_deep_lists_and_objects_lie_they_are_refused(
    depth: int, start: bytes, middle: bytes, end: bytes
) -> None:
    nested = start * depth + middle + end * depth
    for body in (nested, b'{"inputs": [%b]}' % nested, b'{"inputs": [%b, "x"]}' % nested):
        if len(body) < LIMITS.body_bytes:
            assert asked(APP, body)[0] == 400


@pytest.mark.parametrize(
    "value",
    [
        *(b"NaN", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"-0", b"-0.0", b"9" * 4000),
        *(b"9" * 5000, b"9" * 400 + b", 1.5", b"9223372036854775808, -1", b"01", b"0x1", b"1_0"),
        *(
            b'"\\ud800"',
            b'"\\udfff\\ud800"',
            b"\xed\xa0\x80",
            b'"\x00"',
            b"\xef\xbb\xbf1",
            b"[1], 2",
        ),
    ],
)
def test_numbers_that_are_no_pixels_are_refused(value: bytes) -> None:
    assert asked(APP, b'{"inputs": [[[%b]]]}' % value)[0] == 400


def test_a_name_that_stands_twice_is_refused() -> None:
    status, said = asked(APP, b'{"inputs": %b, "inputs": [1]}' % json.dumps([image(1)]).encode())
    assert (status, said["error"]) == (400, 'the body\'s JSON holds "inputs" twice in one object')


def test_a_text_among_many_numbers_takes_little_memory() -> None:
    """numpy would make each of the numbers a text as long as the longest."""
    body = json.dumps({"inputs": ["x" * 20_000, *[0] * 20_000]}).encode()
    tracemalloc.start()
    try:
        status, said = asked(APP, body)
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()
    assert (status, said["error"][:20]) == (400, 'inputs[0] is "xxxxxx')


@pytest.mark.parametrize("unit", [b"[]", b"{}", b'""', b"[1]", b"[{}]", b"1.5", b'"ab"'])
@matrix(29)
def test_what_a_body_unfolds_to_stays_within_the_estimate(unit: bytes) -> None:
    """The estimate that is taken from the budget bounds what reading truly takes."""
    body = b'{"inputs": [' + b",".join([unit] * (150_000 // (len(unit) + 1))) + b"]}"
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match="inputs"):
            images_in(body, (2, 3, 1), most=9)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * memory_to_read(body)
    finally:
        tracemalloc.stop()


@matrix(29)
def test_json_that_would_take_too_much_memory_is_refused_unread() -> None:
    app = create_app(served(), Limits(images=9, body_bytes=16_000_000))
    status, said = asked(app, b'{"inputs": [' + b"[]," * 5_000_000 + b"[]]}")
    assert (status, "MB to read; send fewer images" in said["error"]) == (413, True)


# Bodies, heads and places


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    where = urlsplit(address)
    with socket.create_connection((where.hostname, where.port), timeout=20) as made:
        yield made


def head(*lines: str, path: str = "/invocations") -> bytes:
    fixed = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join([*fixed, *lines, "", ""]).encode()


def until_closed(connection: socket.socket) -> bytes:
    """All that comes until the server closes; a reset raises."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answered(connection: socket.socket) -> bool:
    """Whether the one answer that comes, read whole, is that of a good request."""
    answer = b""
    while not answer.endswith(b"]}"):
        answer += connection.recv(65536)
    return answer.startswith(b"HTTP/1.1 200")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(APP, http=Connection) as where:
        yield where


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "lines", "status"),
    [
        ("/invocations", (), b"413"),
        ("/predict", (), b"415"),
        ("/nowhere", (), b"404"),
        ("/invocations", ("Origin: http://evil.example",), b"403"),
    ],
)
def test_who_sends_a_large_body_before_reading_sees_the_refusal(
    path: str, lines: tuple[str, ...], status: bytes, chunked: bool, address: str
) -> None:
    part = b" " * MIB
    framed = b"%x\r\n%b\r\n" % (len(part), part) if chunked else part
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {17 * MIB}"
    with connected(address) as connection:
        connection.sendall(head(*lines, length, path=path))
        for _ in range(17):
            connection.sendall(framed)
        connection.sendall(b"0\r\n\r\n" if chunked else b"")
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2]).keys() == {"error"}


def test_a_refused_body_is_not_read_for_ever(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "DRAIN_S", 0.3)
    with connected(address) as connection:
        connection.sendall(head("Content-Length: 99000000") + b" " * 1000)
        assert until_closed(connection).startswith(b"HTTP/1.1 413")
    monkeypatch.setattr(guard, "DRAIN_S", 60.0)
    monkeypatch.setattr(guard, "DRAINED", MIB)
    with connected(address) as connection:
        connection.sendall(head("Content-Length: 99000000"))
        with pytest.raises(ConnectionError):
            for _ in range(90):
                connection.sendall(b" " * MIB)


def test_who_asks_before_sending_a_large_body_is_told_at_once(address: str) -> None:
    with connected(address) as connection:
        connection.settimeout(guard.DRAIN_S / 2)
        connection.sendall(head("Content-Length: 17000000", "Expect: 100-continue"))
        assert until_closed(connection).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_arrive_is_given_up_and_its_place_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.5)
    monkeypatch.setattr(guard, "WAIT_S", 20.0)
    app = create_app(served(), LIMITS)
    app.state.bodies = Room(len(LARGE))
    with running(app) as address, connected(address) as late:
        late.sendall(head(f"Content-Length: {len(LARGE)}") + LARGE[:-1])
        assert ask(address, LARGE).status_code == 200  # waited for the place
        answer = until_closed(late)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.5 s" in answer


@pytest.mark.slow
def test_large_bodies_wait_for_their_turn_and_small_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "WAIT_S", 0.3)
    app = create_app(served(), LIMITS)
    app.state.bodies = Room(len(LARGE))
    assert len(LARGE) > SMALL
    with running(app) as address, connected(address) as late:
        late.sendall(head(f"Content-Length: {len(LARGE)}") + LARGE[:-1])
        time.sleep(0.5)
        for body in (LARGE, iter([LARGE])):  # the second without its length
            answer = requests.post(
                f"{address}/invocations",
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=20,
            )
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert ask(address, GOOD).status_code == 200
        late.sendall(LARGE[-1:])
        assert answered(late)
        assert ask(address, LARGE).status_code == 200


class Full(Room):
    """Room that other requests hold."""

    @asynccontextmanager
    async def taking(self, wanted: int) -> AsyncIterator[None]:
        raise Refused(guard.BUSY, f"no {wanted} bytes")
        yield


def sending(*parts: bytes, pause: float = 0.0, **headers: str) -> Request:
    """A request whose body arrives in these parts, each after a pause in seconds."""
    remaining = iter(parts)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        part = next(remaining, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": pairs}, receive)


@pytest.mark.parametrize("headers", [{"content-length": "8000000"}, CHUNKED])
def test_a_large_body_is_held_once(headers: dict[str, str]) -> None:
    parts = [bytes(1_000_000)] * 8

    async def held() -> int:
        async with guard.body_of(sending(*parts, **headers), Room(8_000_000), 8_000_000) as body:
            assert len(body) == 8_000_000
            return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert asyncio.run(held()) < 9_000_000
    finally:
        tracemalloc.stop()


def test_a_body_of_unknown_size_has_the_time_of_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first part, and then the rest, would each arrive in time."""
    monkeypatch.setattr(guard, "BODY_S", 0.4)
    first = bytes(SMALL + 1)

    async def read() -> None:
        async with guard.body_of(sending(first, pause=0.25, **CHUNKED), Room(MIB), MIB):
            pass

    with pytest.raises(Refused, match="did not arrive within 0.4 s"):
        asyncio.run(read())


def test_a_body_of_unknown_size_takes_room_once_it_is_large() -> None:
    app = create_app(served(), LIMITS)
    app.state.bodies = Full(1)
    assert asked(app, GOOD, **CHUNKED)[0] == 200
    status, said = asked(app, LARGE, **CHUNKED)
    assert (status, said["error"]) == (503, f"no {LIMITS.body_bytes} bytes")


def test_no_more_requests_are_worked_on_in_threads_than_there_are_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "WAIT_S", 0.3)
    begun, go_on = threading.Event(), threading.Event()

    def predict(images: Array) -> Array:
        if len(images) > 1:
            begun.set()
            assert go_on.wait(timeout=20)
        return brightness(images)

    app = create_app(served(predict), LIMITS)
    app.state.workers = Room(1)
    with running(app) as address:
        answers: list[int] = []
        first = threading.Thread(target=lambda: answers.append(ask(address, LARGE).status_code))
        first.start()
        assert begun.wait(timeout=20)
        assert ask(address, LARGE).status_code == 503
        assert ask(address, GOOD).status_code == 200
        go_on.set()
        first.join(timeout=20)
        assert answers == [200]
        assert ask(address, LARGE).status_code == 200


def test_the_model_takes_many_images_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "AT_ONCE", 6 * 7)
    sizes: list[int] = []

    def predict(images: Array) -> Array:
        sizes.append(len(images))
        return brightness(images)

    values = [image(value) for value in range(0, 250, 10)]
    body = json.dumps({"inputs": values}).encode()
    assert asked(create_app(served(predict), LIMITS), body) == asked(APP, body)
    assert sizes == [7, 7, 7, 4]


@pytest.mark.parametrize("before", [b"", GOOD])
def test_a_head_that_does_not_arrive_is_given_up(
    before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "HEAD_S", 0.5)
    with running(APP, http=Connection) as address, connected(address) as late:
        if before:
            late.sendall(head(f"Content-Length: {len(before)}") + before)
            assert answered(late)
        begun = time.monotonic()
        for line in (b"POST / HTTP/1.1\r\n", b"X: y\r\n", b"Y: z\r\n"):  # puts nothing off
            late.sendall(line)
            time.sleep(0.05)
        assert until_closed(late) == b""
        assert time.monotonic() - begun < 10


@pytest.mark.slow
def test_a_kept_connection_outlives_the_time_for_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_S", 0.2)
    with running(APP, http=Connection) as address, connected(address) as kept:
        for _ in range(3):
            kept.sendall(head(f"Content-Length: {len(GOOD)}") + GOOD)
            assert answered(kept)
            time.sleep(0.4)


def test_one_connection_too_many_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "CONNECTIONS", 2)
    with running(APP, http=Connection) as address, connected(address), connected(address):
        third = socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=20)
        assert until_closed(third) == b""
        third.close()
