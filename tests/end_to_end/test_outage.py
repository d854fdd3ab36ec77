"""A tracking server that dies in the middle of a training and comes back after its end."""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import mlflow
import pytest

from pipeline.run import run
from pipeline.system.errors import PipelineError
from pipeline.tracking.client import connect
from tests.commands import DRAWN, carried_out, configured, free_port, inside, mlflow_server
from tests.stores import wait_briefly
from tests.stress.matrix import matrix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS, LAST_SEEN = 30, 20
ONE_EACH = ("train.plots=[accuracy]", "evaluate.plots=[confusion_matrix]")
NAMES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


@matrix(16)
def test_a_server_that_dies_at_epoch_20_delays_nothing_and_gets_everything_once_from_sync(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_briefly(monkeypatch)
    theirs, port = tmp_path / "server", free_port()
    theirs.mkdir()
    options = ("--artifacts-destination", str(theirs / "files"))
    ends: list[float] = []
    with ExitStack() as first, inside(tmp_path / "user") as here:
        address = first.enter_context(mlflow_server(theirs / "mlflow.db", *options, port=port))

        def watch(epoch: int, _: dict[str, float]) -> None:
            if epoch == LAST_SEEN:
                first.close()
            ends.append(time.perf_counter())

        words = (*DRAWN, *ONE_EACH, f"train.epochs={EPOCHS}", f"tracking.uri={address}")
        folder = here / "outputs" / "today" / "now"
        made = run(configured(*words), folder, watch)
        ended = time.time() * 1000
        assert f"python -m pipeline sync folder={folder.relative_to(here)}" in (
            capsys.readouterr().err
        )
        assert made.model_uri == str(folder / "model")
        waits = [later - earlier for earlier, later in pairwise(ends)]
        assert max(waits[LAST_SEEN:]) < 1
        with pytest.raises(PipelineError, match="nothing answers there"):
            carried_out("sync", f"tracking.uri={address}", folder=here)

        with mlflow_server(theirs / "mlflow.db", *options, port=port):
            carried_out("sync", f"tracking.uri={address}", folder=here)
            client = connect(address)
            found = client.get_run(made.run_id)
            assert (found.info.status, found.info.end_time <= ended) == ("FINISHED", True)
            for name in NAMES:
                history = client.get_metric_history(made.run_id, name)
                assert sorted(point.step for point in history) == [*range(1, EPOCHS + 1)]
            names = {artifact.path for artifact in client.list_artifacts(made.run_id)}
            assert {"report.html", "config.yaml", "predictions.npz", "plots"} <= names
            [model] = client.search_logged_models([found.info.experiment_id])
            assert (str(model.status), model.model_uri) == ("READY", found.data.tags["model_uri"])
            assert mlflow.tensorflow.load_model(model.model_uri).input_shape == (None, 28, 28, 1)
            assert len(client.search_runs([found.info.experiment_id])) == 1
        assert not (folder / "journal.jsonl").exists()
