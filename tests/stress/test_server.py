"""Runs whose tracking server is away, answers errors or loses answers: rows 1 and 15 to 20."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from docs import screenshots
from pipeline.run import run
from pipeline.tracking.client import connect
from tests.commands import QUICK, begun, carried_out, configured, inside, pipeline
from tests.end_to_end.test_signals import ENDLESS, until_it_says
from tests.stress.matrix import matrix, only_stressed, stressed, tally
from tests.stress.proxy import CUT, DROP, HOLD, Proxy
from tests.stress.stores import assert_recorded, at_once
from tests.stress.test_load import EPOCHS, PROCESSES, assert_all_there

pytestmark = [pytest.mark.slow, only_stressed]

FEW_EPOCHS = 12


@dataclass(frozen=True, kw_only=True)
class Served:
    """An MLflow server, a proxy before it, and a client that asks it directly."""

    proxy: Proxy
    client: MlflowClient
    uri: str

    def words(self, *more: str) -> tuple[str, ...]:
        """The words of a run of a few epochs that is recorded through the proxy."""
        uri = f"tracking.uri={self.proxy.address}"
        return (*QUICK, f"train.epochs={FEW_EPOCHS}", uri, *more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--artifacts-destination", str(folder / "files"))
    with screenshots.server(folder / "mlflow.db", *options) as uri:
        proxy = Proxy(int(urlsplit(uri).port or 0))
        yield Served(proxy=proxy, client=MlflowClient(uri), uri=uri)
        proxy.down()


@pytest.fixture
def served(server: Served, tmp_path: Path) -> Iterator[Served]:
    """The server, of which the proxy lets everything through again afterwards."""
    with inside(tmp_path / "user"):
        yield server
    server.proxy.rule = lambda kind: None
    server.proxy.asked.clear()
    server.proxy.down()
    server.proxy.up()


def assert_quiet(capfd: pytest.CaptureFixture[str]) -> str:
    """What was printed on stderr, which has no traceback."""
    said = capfd.readouterr().err
    assert "Traceback" not in said, said
    return said


@matrix(1)
def test_eight_runs_at_once_lose_no_point_through_a_server(served: Served, tmp_path: Path) -> None:
    ids = at_once(PROCESSES, tmp_path, served.uri, epochs=EPOCHS)
    assert_all_there(served.client, ids, EPOCHS)


@matrix(15)
def test_a_server_that_is_away_for_a_minute_delays_no_epoch(
    served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    away_s = stressed(60, 6)
    epochs, waits, last = FEW_EPOCHS, list[float](), [0.0]

    def watch(epoch: int, _: dict[str, float]) -> None:
        if epoch > 1:
            waits.append(time.perf_counter() - last[0])
        if epoch == 3:
            served.proxy.down()
            threading.Timer(away_s, served.proxy.up).start()
        time.sleep(1.5 * away_s / epochs)
        last[0] = time.perf_counter()

    made = run(configured(*served.words()), tmp_path / "run", watch)
    assert_recorded(served.client, made.run_id, tmp_path / "run", epochs)
    assert max(waits) < 2
    assert_quiet(capfd)


@matrix(16)
def test_a_run_that_is_stopped_while_its_server_is_away_ends_in_ten_seconds(
    served: Served, tmp_path: Path
) -> None:
    words = (*ENDLESS, f"tracking.uri={served.proxy.address}")
    with begun(*words, cwd=tmp_path) as process:
        until_it_says("epoch      2/", process)
        served.proxy.down()
        time.sleep(1)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        ended = process.ended(60)
    assert time.monotonic() - began < 10
    assert ended.returncode == 143, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "python -m pipeline sync folder=outputs/" in ended.stderr
    served.proxy.up()
    sent = pipeline("sync", f"tracking.uri={served.proxy.address}", cwd=tmp_path)
    assert "status=KILLED" in sent.stdout, sent.stderr


@matrix(16)
def test_a_run_whose_server_goes_away_before_its_end_ends_in_ten_seconds_more(
    served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def watch(epoch: int, _: dict[str, float]) -> None:
        if epoch == FEW_EPOCHS:
            served.proxy.down()
            times.append(time.monotonic())

    times: list[float] = []
    made = run(configured(*served.words()), tmp_path / "run", watch)
    took = time.monotonic() - times[0]
    assert "python -m pipeline sync folder=" in assert_quiet(capfd)
    served.proxy.up()
    carried_out("sync", f"sync.folder={tmp_path / 'run'}", *served.words()[-1:], folder=tmp_path)
    assert_recorded(served.client, made.run_id, tmp_path / "run", FEW_EPOCHS)
    assert took < 13  # evaluating and saving takes a second or two


@matrix(17)
@pytest.mark.parametrize("how", ["refuses", 503, HOLD])
def test_a_server_that_is_not_ready_at_the_start_is_refused_in_ten_seconds(
    how: str | int, served: Served, tmp_path: Path
) -> None:
    if how == "refuses":
        served.proxy.down()
    else:
        served.proxy.rule = lambda kind: how
    began = time.monotonic()
    ended = pipeline(*served.words(), cwd=tmp_path)
    assert time.monotonic() - began < 14  # with the checking of the configuration
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) <= 2
    assert "127.0.0.1" in ended.stderr
    assert "tracking.uri=" in ended.stderr
    assert not (tmp_path / "data").exists()


@matrix(18)
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_fifth_of_the_requests_fails_and_nothing_is_lost(
    status: int, served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(status)

    def rule(kind: str) -> int | None:
        return status if draw.random() < 0.2 else None

    rounds = stressed(5, 1)
    tally(rounds)
    for number in range(rounds):
        connect(served.proxy.address)  # at the start a failure is told; see row 17
        served.proxy.rule = rule
        folder = tmp_path / str(number)
        made = run(configured(*served.words()), folder)
        served.proxy.rule = lambda kind: None
        if (folder / "journal.jsonl").exists():  # it was away for 10 s at the end
            carried_out("sync", f"sync.folder={folder}", *served.words()[-1:], folder=tmp_path)
        assert_recorded(served.client, made.run_id, folder, FEW_EPOCHS)
    assert_quiet(capfd)


@matrix(19)
def test_the_answer_to_any_kind_of_request_may_get_lost(
    served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment = "tracking.experiment=first"
    run(configured(*served.words(experiment)), tmp_path / "first")
    kinds = list(dict.fromkeys(served.proxy.asked))
    assert {"POST runs/create", "POST runs/log-batch", "PUT artifacts"} <= set(kinds)
    kinds = kinds[: stressed(len(kinds), 3)]
    tally(len(kinds))
    for number, lost in enumerate(kinds):
        left = [1]

        def rule(kind: str, lost: str = lost, left: list[int] = left) -> str | None:
            if kind == lost and left[0]:
                left[0] -= 1
                return DROP
            return None

        served.proxy.rule = rule
        folder = tmp_path / str(number)
        made = run(configured(*served.words(f"tracking.experiment=lost{number}")), folder)
        served.proxy.rule = lambda kind: None
        assert left == [0], lost
        found = assert_recorded(served.client, made.run_id, folder, FEW_EPOCHS)
        assert len(served.client.search_runs([found.info.experiment_id])) == 1, lost
        assert len(found.inputs.dataset_inputs) == 1
    assert_quiet(capfd)


@matrix(20)
def test_an_upload_that_is_cut_off_is_made_again(
    served: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uploads = stressed(5, 2)
    tally(uploads)
    for number in range(uploads):
        seen = [0]

        def rule(kind: str, seen: list[int] = seen, at: int = 1 + 3 * number) -> str | None:
            seen[0] += kind == "PUT artifacts"
            return CUT if kind == "PUT artifacts" and seen[0] == at else None

        served.proxy.rule = rule
        folder = tmp_path / str(number)
        made = run(configured(*served.words()), folder)
        served.proxy.rule = lambda kind: None
        assert_recorded(served.client, made.run_id, folder, FEW_EPOCHS)
        theirs = Path(served.client.download_artifacts(made.run_id, "", str(tmp_path)))
        for path in (folder / "artifacts").rglob("*"):
            if path.is_file():
                same = theirs / path.relative_to(folder / "artifacts")
                assert same.read_bytes() == path.read_bytes(), path
    assert_quiet(capfd)
