"""The HTTP server of a model: images in, class and probabilities out.

`POST /invocations` speaks the protocol of MLflow's scoring server, `POST /predict` takes a picture.
Small requests are answered in the event loop, which is faster than a thread; large ones and
pictures in a few threads, so that they do not delay others. The model takes the threads' images one
request after the other, in parts, to save memory.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.data.pictures import PAD
from pipeline.data.values import Array, Shape
from pipeline.system.errors import one_line
from pipeline.verbs.serve.bodies import (
    SMALL,
    WRONG_KIND,
    Refused,
    images_in,
    picture_in,
    require_picture_channels,
    require_picture_type,
)
from pipeline.verbs.serve.guard import BODIES, BUSY, WORKERS, Access, Guard, Room, body_of

AT_ONCE = 2**18  # pixel values that go through the model together: 334 images of 28×28
_FAILED = 500
RETRY_AFTER_S = "5"
JSON = "application/json"
ADDRESSES = "POST /invocations, /predict; GET /ping, /health, /version, /example"

log = logging.getLogger("pipeline.verbs.serve.app")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model ready to answer: `predict` takes images u8[N,H,W,C] to probabilities f32[N,K].

    `about` says which model it is, for `GET /version`; `example` u8[N,H,W,C] is for people to try;
    `dark_border` is the share of the training images with a dark border, None if unknown;
    `fit` says how pictures are fitted to the model's size.
    """

    predict: Callable[[Array], Array]
    class_names: tuple[str, ...]
    image_shape: Shape
    about: Mapping[str, str | None]
    example: Array | None = None
    dark_border: float | None = None
    fit: str = PAD


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request."""

    images: int
    body_bytes: int


def images_per_part(shape: Shape) -> int:
    """Images of shape [H,W,C] that go through the model together, one part of a request."""
    return max(1, AT_ONCE // math.prod(shape))


Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def create_app(
    served: Served,
    limits: Limits,
    lifespan: Lifespan | None = None,
    access: Access = Access(),  # noqa: B008 (frozen)
) -> Starlette:
    """The application that serves `app.state.served`, which may be replaced while it runs."""
    app = Starlette(
        routes=[
            Route("/invocations", _invocations, methods=["POST"]),
            Route("/predict", _predict, methods=["POST"]),
            Route("/ping", _health),
            Route("/health", _health),
            Route("/version", _version),
            Route("/example", _example),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={Refused: _refused, HTTPException: _no_such_request},
        lifespan=lifespan,
    )
    app.state.served, app.state.limits = served, limits
    app.state.bodies = Room(max(BODIES, limits.body_bytes))
    app.state.workers, app.state.predicting = Room(WORKERS), Lock()
    return app


async def _invocations(request: Request) -> Response:
    kind = _kind(request)
    if kind != JSON:
        reason = f"the content type is {kind}; send JSON with the header 'Content-Type: {JSON}'"
        raise Refused(WRONG_KIND, reason)
    state = request.app.state
    async with body_of(request, state.bodies, state.limits.body_bytes) as body:
        if len(body) <= SMALL:
            images = images_in(body, state.served.image_shape, most=state.limits.images)
            return _json({"predictions": _predictions(state.served, images)})
        async with state.workers.taking(1):
            return await run_in_threadpool(_answer, body, state)


async def _predict(request: Request) -> Response:
    state = request.app.state
    require_picture_channels(state.served.image_shape)
    require_picture_type(_kind(request))
    reading = body_of(request, state.bodies, state.limits.body_bytes)
    async with reading as body, state.workers.taking(1):
        return await run_in_threadpool(_answer_picture, body, state)


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() or "missing"


def _answer(body: bytes, state: State) -> Response:
    served = state.served
    images = images_in(body, served.image_shape, most=state.limits.images)
    with state.predicting:
        return _json({"predictions": _predictions(served, images)})


def _answer_picture(body: bytes, state: State) -> Response:
    served = state.served
    image, inverted = picture_in(body, served.image_shape, served.dark_border, served.fit)
    with state.predicting:
        [prediction] = _predictions(served, image)
    return _json({"predictions": [prediction | {"inverted": inverted}]})


def _predictions(served: Served, images: Array) -> list[dict[str, Any]]:
    try:
        step = images_per_part(served.image_shape)
        parts = [served.predict(images[n : n + step]) for n in range(0, len(images), step)]
        probabilities = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if not np.isfinite(probabilities).all():
            raise ValueError("the model answered with NaN or infinity")
    except Exception as error:
        log.error("a request failed: %s", one_line(error))
        log.debug("predicting images of the shape %s failed", images.shape, exc_info=True)
        raise Refused(_FAILED, "the model failed on these images; the log tells why") from error
    return [
        {
            "class": served.class_names[best],
            "probability": row[best],
            "probabilities": dict(zip(served.class_names, row, strict=True)),
        }
        for best, row in zip(
            probabilities.argmax(axis=1).tolist(), probabilities.tolist(), strict=True
        )
    ]


async def _health(request: Request) -> Response:
    return _json({"status": "ok"})


async def _version(request: Request) -> Response:
    served = request.app.state.served
    shape = list(served.image_shape)
    return _json({**served.about, "class_names": list(served.class_names), "image_shape": shape})


async def _example(request: Request) -> Response:
    example = request.app.state.served.example
    if example is None:
        raise Refused(404, "the model was saved without an example")
    return _json({"inputs": example.tolist()})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    response = _json({"error": str(error)}, error.status)
    if error.status == BUSY:
        response.headers["retry-after"] = RETRY_AFTER_S
    return response


async def _no_such_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = f"{request.method} {request.scope['path']}: {error.detail}; there are {ADDRESSES}"
    response = _json({"error": reason}, error.status_code)
    response.headers.update(error.headers or {})
    return response


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A request may hold half of a surrogate pair, which the reason then quotes.
    return Response(text.encode("utf-8", "replace"), status_code=status, media_type=JSON)
