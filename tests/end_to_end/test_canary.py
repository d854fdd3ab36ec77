"""A secret in every place a user can put one is in no file, row or printed byte afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.commands import DRAWN, free_port, pipeline, undrawn
from tests.stress.matrix import matrix, only_stressed
from tests.verbs.doctor.test_command import without_tensorflow

pytestmark = pytest.mark.slow

CANARY = "c4n4ry-5ecret-0f-the-test"
WORDS = (
    f"+tracking.tags.token={CANARY}",
    f"+tracking.tags.home=https://me:{CANARY}@host/x",
    f"+tracking.tags.link='https://host/x?api_key={CANARY}'",
    f"sweep.storage=sqlite:///study.db?password={CANARY}",
)
MORE = (
    f"++tracking.tags.credentials={CANARY}",
    f"+tracking.tags.as_user='https://{CANARY}@host/x'",  # a token as the user's name
)
ENVIRONMENT = {"MLFLOW_TRACKING_PASSWORD": CANARY, "MLFLOW_TRACKING_USERNAME": "me"}
LEAN = (*DRAWN, "train.plots=[]", "evaluate.plots=[]", "train.tensorboard=false")


def assert_nowhere(folder: Path, *printed: str) -> None:
    found = [text for text in printed if CANARY in text]
    assert not found, found
    for path in folder.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
        assert CANARY not in path.name


@matrix(44)
def test_a_run_leaves_no_secret(recorded: Path) -> None:
    assert (recorded / "mlflow.db").exists()
    kept = next(recorded.rglob("overrides.yaml")).read_text()
    assert "tracking.tags.token=***" in kept


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that had secrets wherever a user can put one."""
    folder = tmp_path_factory.mktemp("recorded")
    ran = pipeline(*LEAN, *WORDS[:3], *MORE, cwd=folder, **ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr
    assert_nowhere(folder, ran.stdout, ran.stderr)
    return folder


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (0, "compare"),
        (0, "report run_id=latest"),
        (None, "doctor"),
        (0, "promote run_id=latest force=true max_latency_ms=null"),
        (0, "history format=json"),
    ],
)
@matrix(44)
def test_what_is_made_of_a_run_tells_no_secret(code: int | None, line: str, recorded: Path) -> None:
    verb, *words = line.split()
    reason = [f"reason=for https://me:{CANARY}@host?token={CANARY}"] if verb == "promote" else []
    given = (verb, "dataset=synthetic", *words, *reason)
    told = pipeline(*given, cwd=recorded, before=without_tensorflow, **ENVIRONMENT)
    assert code is None or told.returncode == code, told.stderr
    assert_nowhere(recorded, told.stdout, told.stderr)


# All but ours print each job's words; joblib with one worker stays in this process.
@pytest.mark.parametrize(
    "launcher",
    [
        "local",
        pytest.param("basic", marks=only_stressed),
        pytest.param("joblib hydra.launcher.n_jobs=1", marks=only_stressed),
    ],
)
@matrix(44)
def test_a_sweep_leaves_no_secret(launcher: str, tmp_path: Path) -> None:
    words = ("-m", *LEAN, *WORDS[:3], "seed=0,1", "sweep.keep_models=0")
    given = f"hydra/launcher={launcher}".split()
    ran = pipeline(*words, *given, cwd=tmp_path, before=undrawn, **ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)


@matrix(44)
def test_a_study_in_a_database_that_cannot_be_had_is_told_without_its_password(
    tmp_path: Path,
) -> None:
    storage = f"postgresql://me:{CANARY}@127.0.0.1:{free_port()}/study"
    words = ("hydra/sweeper=search", "sweep.n_trials=2", "optimizer.learning_rate=interval(0.1,1)")
    ran = pipeline("-m", *LEAN, *words, f"sweep.storage={storage}", cwd=tmp_path)
    assert ran.returncode == 2
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)


@matrix(44)
def test_parameters_of_an_mlproject_are_no_way_out_either(tmp_path: Path) -> None:
    ran = pipeline(
        *("train", "--mlproject", "dataset=synthetic", "model=linear", "train.epochs=1"),
        *("--tracking.tags.password", CANARY),
        f"overrides=+tracking.tags.api_token={CANARY} train.plots=[] train.tensorboard=false",
        cwd=tmp_path,
    )
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)


@matrix(44)
def test_a_store_that_fails_in_mid_run_is_told_without_the_secret(tmp_path: Path) -> None:
    """A server that answers at first and then refuses everything, quoting the request."""
    with refusing() as port:
        address = f"http://me:{CANARY}@127.0.0.1:{port}"
        ran = pipeline(*LEAN, cwd=tmp_path, MLFLOW_TRACKING_URI=address)
    assert ran.returncode != 0
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)


@contextmanager
def refusing() -> Iterator[int]:
    class Answers(BaseHTTPRequestHandler):
        def answer(self) -> None:
            told = {"error_code": "BAD_REQUEST", "message": f"no: {self.headers['Authorization']}"}
            status, body = 400, json.dumps(told).encode()
            if self.path in ("/", "/health") or "experiments/search" in self.path:
                status, body = 200, b"{}"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("user", [f"me:{CANARY}", CANARY])
@matrix(44)
def test_a_store_that_is_down_is_told_without_the_secret(user: str, tmp_path: Path) -> None:
    address = f"http://{user}@127.0.0.1:{free_port()}"
    ran = pipeline(*LEAN, f"tracking.uri={address}", cwd=tmp_path)
    assert ran.returncode == 2
    assert "127.0.0.1" in ran.stderr
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)
    by_environment = pipeline(*LEAN, cwd=tmp_path, MLFLOW_TRACKING_URI=address)
    assert_nowhere(tmp_path, by_environment.stdout, by_environment.stderr)


@matrix(44)
def test_a_refused_word_is_told_without_the_secret(tmp_path: Path) -> None:
    ran = pipeline(*LEAN, f"dataset.password={CANARY}", f"api_key={CANARY}", cwd=tmp_path)
    assert ran.returncode == 2
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)


def fails_in_mid_run() -> None:
    _fail_after(2, "TEMPORARILY_UNAVAILABLE")


def refuses_in_mid_run() -> None:
    _fail_after(2, "INVALID_PARAMETER_VALUE")


def _fail_after(writes: int, code: str) -> None:
    """Lets the store fail after some writes, and tell the address with which it was asked."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from pipeline.tracking import lifecycle

    lifecycle.PATIENCE_S = 1.0
    log_batch, made = SqlAlchemyStore.log_batch, list[int]()

    def failing(self: SqlAlchemyStore, *batch: Any, **more: Any) -> Any:
        made.append(1)
        if len(made) > writes:
            asked = f"http://me:{CANARY}@host/api?token={CANARY}, password={CANARY}"
            raise MlflowException(f"no answer from {asked}", code)
        return log_batch(self, *batch, **more)

    SqlAlchemyStore.log_batch = failing  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "before", [fails_in_mid_run, pytest.param(refuses_in_mid_run, marks=only_stressed)]
)
def test_a_store_that_dies_in_mid_run_is_told_without_the_secret(
    before: Callable[[], None], tmp_path: Path
) -> None:
    ran = pipeline(*LEAN, *WORDS[:3], *MORE, cwd=tmp_path, before=before, **ENVIRONMENT)
    assert "no answer from" in ran.stderr + "".join(
        path.read_text() for path in tmp_path.rglob("*.log")
    )
    assert_nowhere(tmp_path, ran.stdout, ran.stderr)
