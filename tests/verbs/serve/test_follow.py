from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
from starlette.applications import Starlette

from pipeline.tracking.client import StoreAway
from pipeline.tracking.models import ModelVersion
from pipeline.verbs.serve.app import Limits, Served, create_app
from pipeline.verbs.serve.follow import Watch, watching

ALIAS = "models:/lamp@champion"
FIRST, SECOND = (ModelVersion(uri=f"models:/lamp/{number}") for number in (1, 2))


def served(version: ModelVersion) -> Served:
    return Served(
        predict=lambda images: images,
        class_names=("dark", "bright"),
        image_shape=(1, 1, 1),
        about={"serving": version.uri},
    )


@contextmanager
def fetched(version: ModelVersion) -> Iterator[Any]:
    """Nothing is fetched."""
    yield version.uri


def watched(
    find: Callable[[], ModelVersion], until: Callable[[Starlette], bool], **given: Any
) -> Starlette:
    """The application after it was watched until that is so."""
    app = create_app(served(FIRST), Limits(images=1, body_bytes=1))
    usual = {
        "fetch": fetched,
        "load": lambda version, saved: served(version),
        "follows": True,
    }
    watch = Watch(alias=ALIAS, known=FIRST.uri, find=find, every_s=0.001, **usual | given)

    async def run() -> None:
        async with asyncio.timeout(20), watching(watch, app):
            while not until(app):
                await asyncio.sleep(0.001)

    asyncio.run(run())
    return app


def answers(*given: ModelVersion | Exception) -> tuple[Callable[[], ModelVersion], list[Any]]:
    """A function that gives one after the other, the last for ever; and what it gave."""
    remaining: Iterator[Any] = iter(given)
    said: list[Any] = []

    def find() -> ModelVersion:
        answer = next(remaining, given[-1])
        said.append(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return find, said


def test_the_version_that_the_alias_moves_to_is_served() -> None:
    find, _ = answers(FIRST, SECOND)
    app = watched(find, lambda app: app.state.served.about["serving"] == SECOND.uri)
    assert app.state.served.about == {"serving": SECOND.uri}


@pytest.mark.parametrize("hangs", ["find", "fetch"])
def test_a_server_ends_while_the_store_hangs(hangs: str) -> None:
    asked, ended, answered = Event(), Event(), Event()

    def ask(what: str) -> None:
        if what == hangs:
            asked.set()
            ended.wait(20)
            answered.set()

    def find() -> ModelVersion:
        ask("find")
        return SECOND

    @contextmanager
    def fetch(version: ModelVersion) -> Iterator[Any]:
        ask("fetch")
        yield version.uri

    app = watched(find, lambda app: asked.is_set(), fetch=fetch)
    assert not answered.is_set()
    ended.set()
    assert app.state.served.about == {"serving": FIRST.uri}


def test_what_was_fetched_is_there_until_it_is_loaded() -> None:
    find, _ = answers(SECOND)
    there: list[str] = []
    seen: list[list[str]] = []

    @contextmanager
    def fetch(version: ModelVersion) -> Iterator[Any]:
        there.append(version.uri)
        yield "its folder"
        there.remove(version.uri)

    def load(version: ModelVersion, saved: Any) -> Served:
        seen.append([saved, *there])
        return served(version)

    app = watched(find, lambda app: bool(seen) and not there, fetch=fetch, load=load)
    assert seen == [["its folder", SECOND.uri]]
    assert app.state.served.about == {"serving": SECOND.uri}


def test_a_version_is_loaded_once() -> None:
    find, said = answers(FIRST, SECOND)
    loaded: list[ModelVersion] = []

    def load(version: ModelVersion, saved: Any) -> Served:
        loaded.append(version)
        return served(version)

    watched(find, lambda app: len(said) >= 5, load=load)
    assert loaded == [SECOND]


def test_a_server_that_does_not_follow_says_once_that_the_alias_moved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    find, said = answers(FIRST, SECOND)
    app = watched(find, lambda app: len(said) >= 5, follows=False)
    assert app.state.served.about == {"serving": FIRST.uri}
    [message] = caplog.messages
    assert message == (
        f"{ALIAS} is {SECOND.uri} now; this server keeps {FIRST.uri} "
        "(restart it, or start it with follow=true)"
    )


def test_a_server_that_does_not_follow_says_that_the_alias_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    find, said = answers(SECOND, FIRST)
    watched(find, lambda app: len(said) >= 5, follows=False)
    _, last = caplog.messages
    assert last == f"{ALIAS} is {FIRST.uri} again, which this server has kept"


def test_a_store_that_is_away_is_told_once_and_followed_again_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    find, _ = answers(StoreAway("it answers 503"), StoreAway("it answers 503"), SECOND)
    with caplog.at_level(logging.WARNING, "pipeline.verbs.serve.app"):
        watched(find, lambda app: app.state.served.about["serving"] == SECOND.uri)
    assert caplog.messages == [f"{ALIAS} is not followed for now: it answers 503"]


def test_a_version_that_does_not_load_is_tried_again_and_the_old_one_serves_on() -> None:
    find, _ = answers(SECOND)
    tries: list[str] = []

    def load(version: ModelVersion, saved: Any) -> Served:
        tries.append(app_serves())
        if len(tries) < 3:
            raise OSError("half written")
        return served(version)

    serving = [FIRST.uri]

    def app_serves() -> str:
        return serving[-1]

    def until(app: Starlette) -> bool:
        serving.append(app.state.served.about["serving"])
        return serving[-1] == SECOND.uri

    watched(find, until, load=load)
    assert tries == [FIRST.uri] * 3
