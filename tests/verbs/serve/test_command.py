"""The verb as a user has it: a trained, registered model, a server process, requests."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
from PIL import Image

from tests.commands import QUICK, begun, environment, free_port, pipeline, results
from tests.stress.matrix import matrix, only_stressed, stressed
from tests.warm import WarmProcess

pytestmark = pytest.mark.slow

CHAMPION = "models:/synthetic@champion"
SERVE = ("serve", "dataset=synthetic", "port=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with the store of one run, whose model is the champion; and what the run said."""
    folder = tmp_path_factory.mktemp("serve")
    ended = pipeline(*QUICK, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    said = results(ended.stdout)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")  # MLflow looks up the source there
    client = mlflow.MlflowClient()
    client.create_registered_model("synthetic")
    version = client.create_model_version(
        "synthetic", said["model_uri"], said["run_id"], model_id=said["model_uri"].split("/")[1]
    )
    client.set_registered_model_alias("synthetic", "champion", version.version)
    return folder, said


@contextmanager
def serving(*arguments: str, cwd: Path, **variables: str) -> Iterator[tuple[WarmProcess, str, str]]:
    """A server's process, the three lines it begins with, and its address."""
    with begun(*arguments, cwd=cwd, **variables) as process:
        yield process, *first_lines(process, process.out, process.err)


def first_lines(process: Any, out: Path, err: Path) -> tuple[str, str]:
    """What a server says when it is ready, and its address."""
    while (said := out.read_text()).count("\n") < 3:
        assert process.poll() is None, err.read_text()
        time.sleep(0.05)
    address = re.search(r"http://\S+", said)
    assert address, said
    return said, address[0]


def ask(address: str, values: Any) -> requests.Response:
    return requests.post(f"{address}/invocations", json={"inputs": values}, timeout=30)


def test_the_champion_is_served_as_it_was_saved_until_ctrl_c(
    trained: tuple[Path, dict[str, str]],
) -> None:
    folder, said = trained
    with serving(*SERVE, cwd=folder) as (process, lines, address):
        assert lines.startswith(
            f"serving {CHAMPION} (version 1, run_id {said['run_id']}) at http://127.0.0.1:"
        )
        about = requests.get(f"{address}/version", timeout=30).json()
        assert (about["model_uri"], about["serving"]) == (CHAMPION, "models:/synthetic/1")
        assert (about["version"], about["run_id"]) == ("1", said["run_id"])

        [command] = [line for line in lines.splitlines() if line.startswith("try it: curl")]
        tried = subprocess.run(
            command.removeprefix("try it: "), shell=True, capture_output=True, text=True
        )
        [prediction] = json.loads(tried.stdout)["predictions"]
        assert [*prediction["probabilities"]] == about["class_names"]

        height, width, channels = about["image_shape"]
        images = np.random.default_rng(0).integers(0, 256, (5, height, width, channels), np.uint8)
        answered = ask(address, images.tolist()).json()["predictions"]
        model = mlflow.tensorflow.load_model(said["model_uri"])
        expected = model(images, training=False).numpy()
        np.testing.assert_allclose(
            [[*one["probabilities"].values()] for one in answered], expected, atol=1e-6
        )
        best = [about["class_names"][index] for index in expected.argmax(axis=1)]
        assert [one["class"] for one in answered] == best

        scaled = ask(address, (images / 255).tolist())
        assert (scaled.status_code, scaled.json().keys()) == (400, {"error"})

        process.send_signal(signal.SIGINT)
        ended = process.ended(30)
    assert (ended.returncode, ended.stdout) == (130, lines)
    assert ended.stderr == "stopped by SIGINT; what was recorded so far is kept\n"


def test_a_model_of_a_run_is_served_by_its_address_through_mlproject(
    trained: tuple[Path, dict[str, str]],
) -> None:
    folder, said = trained
    words = ("serve", "--mlproject", f"model_uri={said['model_uri']}", "port=0", "overrides=")
    with serving(*words, cwd=folder) as (_, lines, address):
        assert f"serving {said['model_uri']} (run_id {said['run_id']}) at" in lines
        assert requests.get(f"{address}/version", timeout=30).json()["version"] is None


def test_a_folder_is_served_without_a_store(
    trained: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    saved = mlflow.artifacts.download_artifacts(trained[1]["model_uri"])
    with serving("serve", f"model_uri={saved}", "port=0", cwd=tmp_path) as (_, lines, address):
        assert lines.startswith(f"serving {saved} at http://127.0.0.1:")
        about = requests.get(f"{address}/version", timeout=30).json()
    assert (about["serving"], about["version"], about["run_id"]) == (saved, None, None)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("models:/synthetic@champion", "promote a run first"),
        ("models:/synthetic/7", "models:/<name>/<version>"),
        ("models:/m-0123", "model_uri"),
    ],
)
def test_a_model_that_is_not_there_is_refused_with_the_way_to_one(
    uri: str, advice: str, tmp_path: Path
) -> None:
    ended = pipeline("serve", f"model_uri={uri}", "port=0", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"model_uri={uri}: not in sqlite:///mlflow.db; ")
    assert advice in line


def test_a_port_in_use_is_refused_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        ended = pipeline("serve", f"port={port}", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"host=127.0.0.1 port={port}: address already in use; choose another")
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_refused(host: str, tmp_path: Path) -> None:
    ended = pipeline("serve", f"host={host}", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"host={host}")


TOKEN = "a-token-of-some-length"


@matrix(42)
def test_a_server_for_others_warns_and_with_a_token_answers_only_who_has_it(
    trained: tuple[Path, dict[str, str]],
) -> None:
    folder, _ = trained
    with serving(*SERVE, "host=0.0.0.0", cwd=folder) as (process, _, address):
        assert requests.get(f"{address}/version", timeout=30).status_code == 200
        foreign = {"Host": "evil.example"}
        assert requests.get(f"{address}/version", headers=foreign, timeout=30).status_code == 403
        process.send_signal(signal.SIGINT)
        assert process.ended(30).stderr.splitlines()[0] == (
            "warning: anybody who reaches 0.0.0.0 can ask this server; "
            "set PIPELINE_SERVE_TOKEN to answer only those who send that token"
        )
    words = (*SERVE, "host=0.0.0.0", "serve.allowed_hosts=[proxy.lan]")
    with serving(*words, cwd=folder, PIPELINE_SERVE_TOKEN=TOKEN) as (process, lines, address):
        assert requests.get(f"{address}/version", timeout=30).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": "proxy.lan"}
        assert requests.get(f"{address}/version", headers=headers, timeout=30).status_code == 200
        [command] = [line for line in lines.splitlines() if line.startswith("try it: curl")]
        tried = subprocess.run(
            command.removeprefix("try it: "),
            shell=True,
            capture_output=True,
            text=True,
            env=environment() | {"PIPELINE_SERVE_TOKEN": TOKEN},
        )
        assert "predictions" in json.loads(tried.stdout)
        process.send_signal(signal.SIGINT)
        ended = process.ended(30)
    assert "warning" not in ended.stderr
    assert TOKEN not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "token", ["", "short", "with spaces in all of it", "ünïcödé-ünïcödé-ünïcödé"]
)
@matrix(42)
def test_a_token_that_is_none_is_refused(token: str, tmp_path: Path) -> None:
    ended = pipeline("serve", "port=0", cwd=tmp_path, PIPELINE_SERVE_TOKEN=token)
    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith("PIPELINE_SERVE_TOKEN needs 16 characters or more")
    assert not token or token not in line


@only_stressed  # test_guard.py and test_bodies.py have each limit
@matrix(29)
def test_many_requests_at_once_take_less_than_1_5_gb_in_all(
    trained: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, _ = trained
    many = stressed(40, 12)
    file = io.BytesIO()
    Image.new("RGBA", (7000, 7000), (9, 99, 199, 128)).save(file, "PNG")
    out, err = tmp_path / "out", tmp_path / "err"
    with (
        out.open("wb") as printed,
        err.open("wb") as told,
        # Of its own, for a fork has all that was imported for other commands in its memory.
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", *SERVE],
            cwd=folder,
            env=environment(),
            stdout=printed,
            stderr=told,
        ) as process,
        ExitStack() as end,
    ):
        end.callback(process.kill)
        _, address = first_lines(process, out, err)
        height, width, channels = requests.get(f"{address}/version", timeout=30).json()[
            "image_shape"
        ]
        images = np.full((1024, height, width, channels), 199, np.uint8)
        lists = b'{"inputs": [' + b"[]," * 3_000_000 + b"[]]}"
        kinds = {
            "picture": ("predict", "image/png", file.getvalue()),
            "images": (
                "invocations",
                "application/json",
                json.dumps({"inputs": images.tolist()}).encode(),
            ),
            "lists": ("invocations", "application/json", lists),
        }

        def post(kind: str) -> tuple[str, int]:
            path, media, body = kinds[kind]
            headers = {"Content-Type": media}
            answer = requests.post(f"{address}/{path}", body, headers=headers, timeout=120)
            return kind, answer.status_code

        for kind in kinds:
            with ThreadPoolExecutor(many) as senders:
                answers = {*senders.map(post, [kind] * many)}
            assert answers <= {(kind, 200), (kind, 400), (kind, 413), (kind, 503)}
            assert ((kind, 200) in answers) == (kind != "lists")
        example = requests.get(f"{address}/example", timeout=30).content
        assert ask(address, json.loads(example)["inputs"]).status_code == 200
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak
        print(f"peak {int(peak[1]) / 1e6:.2f} GB")
        assert int(peak[1]) * 1024 < 1_500_000_000
