"""The HTTP server of a model: images in, class and probabilities out.

`POST /invocations` speaks the protocol of MLflow's scoring server, `POST /predict` takes a picture.
Small requests are answered in the event loop, without the detour over a thread; large ones and
pictures in threads, so that they hold up nobody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pipeline.data.values import Array, Shape
from pipeline.system.errors import one_line
from pipeline.verbs.serve.bodies import (
    BAD_REQUEST,
    TOO_LARGE,
    WRONG_KIND,
    Refused,
    images_in,
)
from pipeline.verbs.serve.picture_body import picture_in, require_picture_type

SMALL = 64 * 1024  # bytes of a body that is answered in the event loop
FAILED = 500
JSON = "application/json"
ADDRESSES = "POST /invocations, /predict; GET /ping, /health, /version, /example"

log = logging.getLogger("pipeline.verbs.serve.app")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model ready to answer: `predict` takes images u8[N,H,W,C] to probabilities f32[N,K].

    `about` says which model it is, for `GET /version`; `example` u8[N,H,W,C] is for people to try;
    `dark_border` is the share of the training images with a dark border, None where not known.
    """

    predict: Callable[[Array], Array]
    class_names: tuple[str, ...]
    image_shape: Shape
    about: Mapping[str, str | None]
    example: Array | None = None
    dark_border: float | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    images: int
    body_bytes: int


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(served: Served, limits: Limits, lifespan: Lifespan | None = None) -> FastAPI:
    """The application that serves `app.state.served`, which may be replaced while it runs."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.served, app.state.limits = served, limits
    # Routes of Starlette's own: FastAPI's would resolve parameters that these do not have.
    app.add_route("/invocations", _invocations, methods=["POST"])
    app.add_route("/predict", _predict, methods=["POST"])
    for path in ("/ping", "/health"):
        app.add_route(path, _health, methods=["GET"])
    app.add_route("/version", _version, methods=["GET"])
    app.add_route("/example", _example, methods=["GET"])
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _no_such_request)
    return app


async def _invocations(request: Request) -> Response:
    kind = _kind(request)
    if kind != JSON:
        reason = f"the content type is {kind}; send JSON with the header 'Content-Type: {JSON}'"
        raise Refused(WRONG_KIND, reason)
    served, limits = request.app.state.served, request.app.state.limits
    body = await _body(request, limits.body_bytes)
    if len(body) <= SMALL:
        return _answer(body, served, limits.images)
    return await run_in_threadpool(_answer, body, served, limits.images)


async def _predict(request: Request) -> Response:
    require_picture_type(_kind(request))
    body = await _body(request, request.app.state.limits.body_bytes)
    return await run_in_threadpool(_answer_picture, body, request.app.state.served)


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() or "missing"


async def _body(request: Request, most: int) -> bytes:
    too_large = Refused(TOO_LARGE, f"the body exceeds {most / 1e6:g} MB; send fewer images at once")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise too_large
    except ClientDisconnect:
        raise Refused(BAD_REQUEST, "the connection ended before the body did") from None
    return bytes(body)


def _answer(body: bytes, served: Served, most: int) -> Response:
    images = images_in(body, served.image_shape, most=most)
    return _json({"predictions": _predictions(served, images)})


def _answer_picture(body: bytes, served: Served) -> Response:
    image, inverted = picture_in(body, served.image_shape, served.dark_border)
    [prediction] = _predictions(served, image)
    return _json({"predictions": [prediction | {"inverted": inverted}]})


def _predictions(served: Served, images: Array) -> list[dict[str, Any]]:
    try:
        probs = served.predict(images)
        if not np.isfinite(probs).all():
            raise ValueError("the model answered with NaN or infinity")
    except Exception as error:
        log.error("a request failed: %s", one_line(error))
        log.debug("predicting images of the shape %s failed", images.shape, exc_info=True)
        raise Refused(FAILED, "the model failed on these images; the log tells why") from error
    return [
        {
            "class": served.class_names[best],
            "probability": row[best],
            "probabilities": dict(zip(served.class_names, row, strict=True)),
        }
        for best, row in zip(probs.argmax(axis=1).tolist(), probs.tolist(), strict=True)
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
    if error.status == TOO_LARGE:
        response.headers["connection"] = "close"  # the rest of the body is not wanted
    return response


async def _no_such_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = f"{request.method} {request.url.path}: {error.detail}; there are {ADDRESSES}"
    response = _json({"error": reason}, error.status_code)
    response.headers.update(error.headers or {})
    return response


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A request may hold half of a surrogate pair, which the reason then quotes.
    return Response(text.encode("utf-8", "replace"), status_code=status, media_type=JSON)
