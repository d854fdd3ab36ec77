"""Watches an alias while its model is served, and loads the new version when it moves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from starlette.applications import Starlette

from pipeline.system.errors import PipelineError, one_line
from pipeline.verbs.serve.app import Served

if TYPE_CHECKING:
    from pipeline.tracking.models import ModelVersion, SavedModel

LOOK_EVERY_S = 10.0
Answer = TypeVar("Answer")

log = logging.getLogger("pipeline.verbs.serve.app")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How to look up the version that an alias refers to, to fetch and to load it.

    `known` is the version that the server started with, and keeps unless it `follows`. Only `find`
    and `fetch` ask the store.
    """

    alias: str
    known: str
    find: Callable[[], ModelVersion]
    fetch: Callable[[ModelVersion], AbstractContextManager[SavedModel]]
    load: Callable[[ModelVersion, SavedModel], Served]
    follows: bool
    every_s: float = LOOK_EVERY_S


@asynccontextmanager
async def watching(watch: Watch, app: Starlette) -> AsyncIterator[None]:
    """While the application runs, logs when the alias moves and, if set, serves the new version."""
    task = asyncio.create_task(_watch(watch, app))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(watch: Watch, app: Starlette) -> None:
    known, complaint = watch.known, ""
    while True:
        await asyncio.sleep(watch.every_s)
        try:
            newest = await _answer_of(watch.find)
            if newest.uri != known:
                await _moved(watch, app, newest)
                known = newest.uri
            complaint = ""
        # The service continues if the store is away for a while, or a model does not load.
        except Exception as error:
            said = str(error) if isinstance(error, PipelineError) else one_line(error)
            if said != complaint:
                complaint = said
                log.warning("%s is not followed for now: %s", watch.alias, complaint)


async def _answer_of(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns or raises, in a thread that the end of the server does not wait for.

    A store that hangs answers after minutes.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Answer] = loop.create_future()

    def settle(result: Answer | BaseException) -> None:
        if answer.done():  # cancelled
            return
        if isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def work() -> None:
        try:
            result: Answer | BaseException = ask()
        except BaseException as error:
            result = error
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(settle, result)

    Thread(target=work, daemon=True).start()
    return await answer


async def _moved(watch: Watch, app: Starlette, newest: ModelVersion) -> None:
    if not watch.follows:
        kept = app.state.served.about["serving"]
        if newest.uri == kept:
            log.warning("%s is %s again, which this server has kept", watch.alias, kept)
            return
        text = "%s is %s now; this server keeps %s (restart it, or start it with follow=true)"
        log.warning(text, watch.alias, newest.uri, kept)
        return
    with ExitStack() as stack:
        saved = await _answer_of(partial(stack.enter_context, watch.fetch(newest)))
        # Warm-up included, and awaited at the end: TensorFlow must not be at work when the process
        # ends. Requests under way end with the model they began with.
        app.state.served = await asyncio.to_thread(watch.load, newest, saved)
    log.info("%s moved: serving %s", watch.alias, newest.uri)
