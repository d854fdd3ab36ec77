"""The verb `serve`: a recorded model behind HTTP, until Ctrl-C."""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.schema import Config
from pipeline.data.pictures import MODES
from pipeline.system.errors import RequestError
from pipeline.system.imports import exempt
from pipeline.system.secrets import learn
from pipeline.system.terminal import native_messages_to
from pipeline.verbs.serve import Serve

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from pipeline.tracking.models import ModelVersion, SavedModel
    from pipeline.verbs.serve.app import Served
    from pipeline.verbs.serve.guard import Access

TOKEN = "PIPELINE_SERVE_TOKEN"  # the variable that holds it
SHORTEST_TOKEN = 16  # characters
BACKLOG = 128  # connections that wait to be accepted
IDLE_S = 60  # for which a connection without a request is kept open
_GRACE_S = 10  # for requests under way when the server is stopped
YOUNG = 100_000  # new objects before Python searches them for cycles
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # hosts that stand for every address

log = logging.getLogger("pipeline.verbs.serve.app")


def serve(config: Config, settings: Serve, folder: Path) -> None:
    """Answers requests with one model until it is stopped; `folder` keeps the log.

    Raises:
        RequestError: the port is taken or the host not this machine's, there is no such model, or
            the environment's token cannot be one.
    """
    from pipeline.tracking.values import champion_uri

    uri = settings.model_uri or champion_uri(config.choices.dataset)
    # Checks everything before the seconds that TensorFlow takes.
    token = _token()
    with _bound(settings.host, settings.port) as listener:
        access = _access(settings, listener.getsockname()[0].partition("%")[0], token)
        app = _application(uri, settings, config, folder, access)
        with _told_where(settings.host, settings.port):  # another may be bound to it, too
            listener.listen(BACKLOG)
        _announce(_address(listener, settings.host), app.state.served, access)
        _run(app, listener)


def _token() -> str | None:
    """The token in the environment, which is kept out of everything written or shown."""
    token = os.environ.get(TOKEN)
    if token is None:
        return None
    learn(token, TOKEN)
    if not re.fullmatch(rf"[!-~]{{{SHORTEST_TOKEN},}}", token):
        raise RequestError(
            f"{TOKEN} needs {SHORTEST_TOKEN} characters or more, of ASCII and without spaces; "
            f"make one with: openssl rand -hex 32"
        )
    return token


def _access(settings: Serve, address: str, token: str | None) -> Access:
    """Who may send requests to the server at that address; warns if anybody may."""
    from pipeline.verbs.serve.guard import LOOPBACK, Access

    if token is None and not ip_address(address).is_loopback:
        print(
            f"warning: anybody who reaches {address} can ask this server; "
            f"set {TOKEN} to answer only those who send that token",
            file=sys.stderr,
            flush=True,
        )
    named = {host.lower() for host in (settings.host, *settings.allowed_hosts)}
    return Access(hosts=LOOPBACK | named, anywhere=address in ANYWHERE, token=token)


def _application(
    uri: str, settings: Serve, config: Config, folder: Path, access: Access
) -> Starlette:
    from pipeline.tracking.models import fetched, finder, follows_alias
    from pipeline.verbs.serve.app import Limits, create_app
    from pipeline.verbs.serve.follow import Watch, watching

    find = finder(uri, config.tracking, config.choices.dataset)
    found = find()
    watch = Watch(
        alias=uri,
        known=found.uri,
        find=find,
        fetch=lambda version: fetched(version.uri, config.tracking),
        load=partial(_load, uri),
        follows=settings.follow,
    )
    with native_messages_to(folder / "tensorflow.log"):
        from pipeline.training import predictor  # noqa: F401
    with watch.fetch(found) as saved:
        served = watch.load(found, saved)
    return create_app(
        served,
        Limits(images=settings.max_images, body_bytes=int(settings.max_body_mb * 1e6)),
        partial(watching, watch) if follows_alias(uri) else None,
        access,
    )


def _load(uri: str, version: ModelVersion, saved: SavedModel) -> Served:
    """The fetched model of that version, compiled and warm."""
    from pipeline.tracking.models import load_fetched
    from pipeline.training.predictor import warm_predictor
    from pipeline.verbs.serve.app import Served, images_per_part

    loaded = load_fetched(saved, version.uri)
    shape = loaded.image_shape
    return Served(
        predict=warm_predictor(
            loaded.model, shape, len(loaded.class_names), most=images_per_part(shape)
        ),
        class_names=loaded.class_names,
        image_shape=shape,
        about={
            "model_uri": uri,
            "serving": version.uri,
            "version": version.version,
            "run_id": version.run_id,
        },
        example=None if loaded.example is None else loaded.example[:1],
        dark_border=loaded.dark_border,
        fit=loaded.fit,
    )


def _bound(host: str, port: int) -> socket.socket:
    """A socket at that address, to which nobody can connect before it listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise RequestError(f"host={host}: {_reason(error)}; serve on 127.0.0.1 or ::1") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _told_where(host, port):
        listener.bind(address)
    return listener


@contextmanager
def _told_where(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"host={host} port={port}: {_reason(error)}; choose another with port=… (0: any free)"
        ) from error


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _address(listener: socket.socket, host: str) -> str:
    port = listener.getsockname()[1]
    shown = ANYWHERE.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _announce(address: str, served: Served, access: Access) -> None:
    about = served.about
    curl = "curl -s" if access.token is None else f'curl -sH "Authorization: Bearer ${TOKEN}"'
    known = ", ".join(f"{key} {about[key]}" for key in ("version", "run_id") if about[key])
    served_model = f"{about['model_uri']} ({known})" if known else about["model_uri"]
    print(f"serving {served_model} at {address} (stop with Ctrl-C)")
    if served.example is not None:
        print(
            f"try it: {curl} {address}/example | {curl} {address}/invocations "
            "-H 'Content-Type: application/json' --data-binary @-"
        )
    if served.image_shape[2] in MODES:
        print(
            f"or with a picture: {curl} {address}/predict -H 'Content-Type: image/png' "
            "--data-binary @picture.png"
        )
    print(end="", flush=True)


def _run(app: Starlette, listener: socket.socket) -> None:
    import uvicorn

    from pipeline.verbs.serve.guard import Connection

    # A request's JSON makes thousands of lists, for which Python would search TensorFlow's objects
    # for cycles again and again: 256 images took five times as long.
    gc.collect()
    exempt()
    gc.set_threshold(YOUNG)
    settings = uvicorn.Config(
        app,
        http=Connection,
        log_config=None,  # Hydra has set up ours
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(settings).run(sockets=[listener])
