"""The application over real HTTP, with a model that is a few lines of numpy."""

from __future__ import annotations

import gzip
import io
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import requests
import uvicorn
from PIL import Image
from starlette.applications import Starlette

from pipeline.data.values import Array
from pipeline.verbs.serve.app import SMALL, Limits, Served, create_app, images_per_part
from tests.commands import free_port
from tests.stress.matrix import matrix

NAMES = ("dark", "bright")
JSON = {"Content-Type": "application/json"}
LIMITS = Limits(images=4000, body_bytes=200_000)


def brightness(images: Array) -> Array:
    """How bright the first pixel is, as the probability of the second class."""
    if (images == 13).all():
        raise RuntimeError("secret/path: the kernel gave up\nand more")
    bright = images[:, 0, 0, 0].astype(np.float32) / 255
    if (images == 66).all():
        bright[:] = np.nan
    return np.stack([1 - bright, bright], axis=1)


def served(predict: Callable[[Array], Array] = brightness, **about: str) -> Served:
    example = np.full((1, 2, 3, 1), 255, np.uint8)
    facts = {"model_uri": "models:/lamp@champion", "version": "3", "run_id": "abc"} | about
    return Served(
        predict=predict, class_names=NAMES, image_shape=(2, 3, 1), about=facts, example=example
    )


@contextmanager
def running(app: Any, **settings: Any) -> Iterator[str]:
    """The address of the application, served by uvicorn in a thread."""
    port = free_port()
    config = uvicorn.Config(
        app, port=port, log_config=None, access_log=False, ws="none", **settings
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(create_app(served(), LIMITS)) as where:
        yield where


def ask(address: str, body: Any, **headers: str) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = requests.post(f"{address}/invocations", data=data, headers=JSON | headers, timeout=20)
    assert answer.headers["content-type"] == "application/json"
    return answer


def image(value: Any) -> list[Any]:
    return [[[value]] * 3] * 2


def refused(answer: requests.Response, status: int) -> str:
    """The reason, which is all there is."""
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    assert "Traceback" not in answer.text
    return str(answer.json()["error"])


def test_the_larger_the_images_the_fewer_go_through_the_model_together() -> None:
    shapes = [(28, 28, 1), (96, 96, 3), (224, 224, 3), (4000, 4000, 3)]
    assert [*map(images_per_part, shapes)] == [334, 9, 1, 1]


def test_an_image_is_answered_with_its_class_and_all_probabilities(address: str) -> None:
    answer = ask(address, {"inputs": [image(255), image(51)]})
    assert answer.status_code == 200
    dark = float(np.float32(1) - np.float32(51) / 255)
    assert answer.json() == {
        "predictions": [
            {"class": "bright", "probability": 1.0, "probabilities": {"dark": 0, "bright": 1}},
            {
                "class": "dark",
                "probability": dark,
                "probabilities": {"dark": dark, "bright": float(np.float32(51) / 255)},
            },
        ]
    }


def test_a_request_too_large_for_the_event_loop_is_answered_alike(address: str) -> None:
    values = [index % 256 for index in range(3000)]
    body = json.dumps({"instances": [image(value) for value in values]}).encode()
    assert SMALL < len(body) < LIMITS.body_bytes
    predictions = ask(address, body).json()["predictions"]
    assert [p["class"] for p in predictions] == [NAMES[value > 127] for value in values]


def test_the_example_is_a_request_ready_to_be_sent_back(address: str) -> None:
    example = requests.get(f"{address}/example", timeout=20)
    answer = ask(address, example.content)
    assert [p["class"] for p in answer.json()["predictions"]] == ["bright"]


def test_the_version_says_which_model_answers(address: str) -> None:
    assert requests.get(f"{address}/version", timeout=20).json() == {
        "model_uri": "models:/lamp@champion",
        "version": "3",
        "run_id": "abc",
        "class_names": ["dark", "bright"],
        "image_shape": [2, 3, 1],
    }


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_a_server_that_answers_is_well(path: str, address: str) -> None:
    answer = requests.get(f"{address}{path}", timeout=20)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def picture(value: int, size: tuple[int, int] = (300, 200), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).save(file, kind)
    return file.getvalue()


def send(address: str, body: bytes, kind: str = "image/png") -> requests.Response:
    return requests.post(
        f"{address}/predict", data=body, headers={"Content-Type": kind}, timeout=20
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_of_any_size_is_answered_as_its_pixels_are(kind: str, address: str) -> None:
    answer = send(address, picture(255, kind=kind), f"image/{kind.lower()}")
    [prediction] = answer.json()["predictions"]
    assert prediction == {
        "class": "bright",
        "probability": 1.0,
        "probabilities": {"dark": 0, "bright": 1},
        "inverted": False,
    }


def test_a_bright_picture_is_inverted_for_a_model_of_dark_ones() -> None:
    app = create_app(replace(served(), dark_border=1.0), LIMITS)
    with running(app) as address:
        [prediction] = send(address, picture(255)).json()["predictions"]
        assert (prediction["class"], prediction["inverted"]) == ("dark", True)
        [prediction] = send(address, picture(0)).json()["predictions"]
        assert (prediction["class"], prediction["inverted"]) == ("dark", False)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_model_of_other_channels_than_pictures_have_says_so_of_a_sound_one(channels: int) -> None:
    app = create_app(replace(served(), image_shape=(2, 3, channels)), LIMITS)
    with running(app) as address:
        reason = refused(send(address, picture(255)), 400)
        assert reason == (
            f"the model takes {channels} channels; pictures have 1 or 3; send their values to "
            "/invocations"
        )
        assert ask(address, {"inputs": [[[[255] * channels] * 3] * 2]}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"GIF89a", picture(1)[:60], b'{"inputs": [[1]]}'])
def test_a_body_that_is_no_picture_is_refused(body: bytes, address: str) -> None:
    reason = refused(send(address, body), 400)
    assert reason.startswith("the body is no picture that can be read (")
    assert "BytesIO" not in reason
    assert reason.endswith("send the bytes of a file in BMP, GIF, JPEG, PNG or WEBP")


def test_a_picture_that_unfolds_to_too_many_pixels_is_refused(address: str) -> None:
    reason = refused(send(address, picture(0, (10_000, 5_001))), 413)
    assert reason == "the picture has 10000×5001 pixels; send at most 50,000,000"


def test_a_picture_that_pillow_itself_calls_too_large_is_refused_alike(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    reason = refused(send(address, picture(0)), 413)
    assert reason == "the picture has too many pixels; send at most 50,000,000"


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json", ""])
def test_a_picture_must_be_called_one(kind: str, address: str) -> None:
    assert "--data-binary @file" in refused(send(address, picture(1), kind), 415)


def test_scaled_pixels_are_refused_and_not_truncated(address: str) -> None:
    reason = refused(ask(address, {"inputs": [image(0.5)]}), 400)
    assert reason.startswith("inputs[0][0][0][0] is 0.5, a float; pixels are whole numbers 0–255")


def test_what_is_no_json_is_refused(address: str) -> None:
    assert refused(ask(address, b"{"), 400).startswith("the body is not JSON")


@pytest.mark.parametrize("kind", ["text/csv", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_refused_with_the_right_one(kind: str, address: str) -> None:
    body = json.dumps({"inputs": [image(1)]}).encode()
    reason = refused(ask(address, body, **{"Content-Type": kind}), 415)
    assert "'Content-Type: application/json'" in reason


def test_a_compressed_body_is_refused_as_such(address: str) -> None:
    for answer in (
        ask(address, gzip.compress(b"{}"), **{"Content-Encoding": "gzip"}),
        requests.post(
            f"{address}/predict",
            data=gzip.compress(picture(1)),
            headers={"Content-Type": "image/png", "Content-Encoding": "gzip"},
            timeout=20,
        ),
    ):
        assert "encoded as gzip; send it as it is" in refused(answer, 415)


def test_a_content_type_with_a_charset_is_json_all_the_same(address: str) -> None:
    kind = "Application/JSON; charset=utf-8"
    assert ask(address, {"inputs": [image(1)]}, **{"Content-Type": kind}).status_code == 200


def test_too_many_images_are_refused_with_the_number_allowed() -> None:
    with running(create_app(served(), Limits(images=1, body_bytes=1000))) as address:
        assert ask(address, {"inputs": [image(1)]}).status_code == 200
        reason = refused(ask(address, {"inputs": [image(1), image(2)]}), 413)
        assert reason == "inputs holds 2 images; send at most 1"


def test_a_body_too_large_is_refused_whether_its_length_is_told_or_not(address: str) -> None:
    body = b" " * (LIMITS.body_bytes + 1)
    assert "exceeds 0.2 MB" in refused(ask(address, body), 413)
    parts = (b" " * 50_000 for _ in range(5))  # sent in chunks
    answer = requests.post(f"{address}/invocations", data=parts, headers=JSON, timeout=20)
    assert "exceeds 0.2 MB" in refused(answer, 413)
    assert ask(address, {"inputs": [image(1)]}).status_code == 200


def test_an_unknown_address_is_told_which_there_are(address: str) -> None:
    reason = refused(requests.get(f"{address}/predictions", timeout=20), 404)
    assert reason.startswith("GET /predictions: Not Found; there are POST /invocations")


def test_a_wrong_method_is_told_the_right_one(address: str) -> None:
    answer = requests.get(f"{address}/invocations", timeout=20)
    assert "POST /invocations" in refused(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_model_that_fails_tells_the_log_and_not_the_client(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "pipeline.verbs.serve.app"):
        reason = refused(ask(address, {"inputs": [image(13)]}), 500)
    assert "secret" not in reason
    brief, whole = caplog.records
    assert brief.getMessage() == "a request failed: RuntimeError: secret/path: the kernel gave up"
    assert (brief.exc_info, whole.levelno) == (None, logging.DEBUG)
    assert whole.exc_info is not None
    assert ask(address, {"inputs": [image(1)]}).status_code == 200


@matrix(25)
def test_a_probability_that_is_no_number_is_a_failure(address: str) -> None:
    refused(ask(address, {"inputs": [image(66)]}), 500)


def test_a_model_without_an_example_has_none_to_show() -> None:
    bare = Served(predict=brightness, class_names=NAMES, image_shape=(2, 3, 1), about={})
    with running(create_app(bare, LIMITS)) as address:
        refused(requests.get(f"{address}/example", timeout=20), 404)


def test_a_large_request_holds_up_no_small_one() -> None:
    small_is_answered = threading.Event()

    def predict(images: Array) -> Array:
        if len(images) > 1:
            assert small_is_answered.wait(timeout=20)
        return brightness(images)

    with running(create_app(served(predict), LIMITS)) as address:
        answers: list[int] = []
        large = {"inputs": [image(1)] * 3000}
        sender = threading.Thread(target=lambda: answers.append(ask(address, large).status_code))
        sender.start()
        assert ask(address, {"inputs": [image(1)]}).status_code == 200
        small_is_answered.set()
        sender.join(timeout=30)
        assert answers == [200]


def test_the_model_can_be_replaced_while_it_serves() -> None:
    app = create_app(served(), LIMITS)
    with running(app) as address:
        app.state.served = served(lambda images: brightness(255 - images), version="4")
        assert ask(address, {"inputs": [image(0)]}).json()["predictions"][0]["class"] == "bright"
        assert requests.get(f"{address}/version", timeout=20).json()["version"] == "4"


def test_what_is_to_run_beside_the_server_starts_and_ends_with_it() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def noted(app: Starlette) -> AsyncIterator[None]:
        events.append("started")
        yield
        events.append("ended")

    with running(create_app(served(), LIMITS, noted)):
        assert events == ["started"]
    assert events == ["started", "ended"]


def test_half_of_a_surrogate_pair_is_refused_like_any_text(address: str) -> None:
    told = refused(ask(address, b'{"inputs": [[["\\ud800"]]]}'), 400)
    assert "a text" in told
    assert refused(ask(address, b'{"\\udfff": []}'), 400)
