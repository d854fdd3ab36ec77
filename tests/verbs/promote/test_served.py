"""Promotion, refusal, history and rollback where records and files are a tracking server's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.run import run
from pipeline.system.errors import PipelineError
from pipeline.verbs.promote.ledger import PROMOTED, REFUSED, ROLLED_BACK
from tests.commands import LEAN, carried_out, configured, inside, mlflow_server, results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DATA = ("dataset=synthetic", "model=linear", *LEAN)
LENIENT = ("promote.min_test_accuracy=0.5", "promote.max_ece=1")
GOOD, WEAK = ("train.epochs=4",), ("train.epochs=1", "optimizer.learning_rate=1e-7")


@dataclass(frozen=True)
class Remote:
    """A server and the folder that a user works in, which has no store."""

    address: str
    folder: Path

    def words(self, *words: str) -> tuple[str, ...]:
        return (*DATA, f"tracking.uri={self.address}", *words)

    def carried_out(self, verb: str, *words: str) -> Any:
        given = LENIENT if verb == "promote" else ()
        return carried_out(verb, *self.words(*given, *words), folder=self.folder)

    def trained(self, *words: str) -> str:
        return run(
            configured(*self.words(*words)), self.folder / "outputs" / "-".join(words)
        ).run_id

    def history(self, capsys: pytest.CaptureFixture[str]) -> Any:
        capsys.readouterr()
        self.carried_out("history", "history.format=json")
        return json.loads(capsys.readouterr().out)


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Remote]:
    theirs, ours = tmp_path / "server", tmp_path / "user"
    theirs.mkdir()
    files = ("--artifacts-destination", str(theirs / "files"))
    with mlflow_server(theirs / "mlflow.db", *files) as address, inside(ours):
        yield Remote(address=address, folder=ours)


def test_through_a_server_a_champion_comes_is_defended_and_goes(
    remote: Remote, capsys: pytest.CaptureFixture[str]
) -> None:
    good, other = (remote.trained(*GOOD, f"seed={seed}") for seed in (1, 2))
    weak = remote.trained(*WEAK)
    for run_id in (good, other):
        remote.carried_out("promote", f"run_id={run_id}")
    with pytest.raises(PipelineError, match="not worse than version 2"):
        remote.carried_out("promote", f"run_id={weak}")
    assert remote.history(capsys)["aliases"] == {"champion": 2, "previous": 1}
    remote.carried_out("rollback")
    assert results(capsys.readouterr().out)["run_id"] == good
    document = remote.history(capsys)
    assert document["aliases"] == {"champion": 1}
    decisions = [line["decision"] for line in document["entries"]]
    assert decisions == [PROMOTED, PROMOTED, REFUSED, ROLLED_BACK]
    model = mlflow.tensorflow.load_model("models:/synthetic@champion")
    assert model.input_shape == (None, 28, 28, 1)
    assert [path.name for path in remote.folder.glob("ml*")] == []
