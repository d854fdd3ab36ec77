"""Watches an alias while its model is served, and loads the new version when it moves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

from fastapi import FastAPI

from pipeline.system.errors import one_line
from pipeline.verbs.serve.app import Served

if TYPE_CHECKING:
    from pipeline.tracking.models import ModelVersion

LOOK_EVERY_S = 10.0

log = logging.getLogger("pipeline.verbs.serve.app")


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How to look up the version that an alias refers to, and to load it.

    `known` is the version that the server started with; `load` is None if it keeps that version.
    """

    alias: str
    known: str
    find: Callable[[], ModelVersion]
    load: Callable[[ModelVersion], Served] | None
    every_s: float = LOOK_EVERY_S


@asynccontextmanager
async def watching(watch: Watch, app: FastAPI) -> AsyncIterator[None]:
    """While the application runs, logs when the alias moves and, if set, serves the new version."""
    task = asyncio.create_task(_watch(watch, app))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(watch: Watch, app: FastAPI) -> None:
    known, complaint = watch.known, ""
    while True:
        await asyncio.sleep(watch.every_s)
        try:
            newest = await _found(watch.find)
            if newest.uri != known:
                await _moved(watch, app, newest)
                known = newest.uri
            complaint = ""
        # The service continues if the store is away for a while, or a model does not load.
        except Exception as error:
            if one_line(error) != complaint:
                complaint = one_line(error)
                log.warning("%s is not followed for now: %s", watch.alias, complaint)


async def _found(find: Callable[[], ModelVersion]) -> ModelVersion:
    """What `find` returns or raises, in a thread that the end of the server does not wait for.

    A store that hangs answers after minutes.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[ModelVersion] = loop.create_future()

    def settle(result: ModelVersion | BaseException) -> None:
        if answer.done():  # cancelled
            return
        if isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def work() -> None:
        try:
            result: ModelVersion | BaseException = find()
        except BaseException as error:
            result = error
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(settle, result)

    Thread(target=work, daemon=True).start()
    return await answer


async def _moved(watch: Watch, app: FastAPI, newest: ModelVersion) -> None:
    if watch.load is None:
        kept = app.state.served.about["serving"]
        text = "%s is %s now; this server keeps %s (restart it, or start it with follow=true)"
        log.warning(text, watch.alias, newest.uri, kept)
        return
    # In a thread, warm-up included; requests under way end with the model they began with.
    app.state.served = await asyncio.to_thread(watch.load, newest)
    log.info("%s moved: serving %s", watch.alias, newest.uri)
