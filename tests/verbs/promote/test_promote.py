"""Promotion, rollback and history on real runs, in this process and as commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest

from pipeline.config.schema import validate_request
from pipeline.run import run
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking.client import connect
from pipeline.tracking.registry import Registry, open_registry
from pipeline.tracking.values import CHALLENGER, CHAMPION, DONE, PREVIOUS, STATE, Present
from pipeline.verbs.promote import Promote
from pipeline.verbs.promote import promote as module
from pipeline.verbs.promote.describe import whole_ledger
from pipeline.verbs.promote.ledger import (
    ABANDONED,
    FORCED,
    PROMOTED,
    REFUSED,
    ROLLED_BACK,
    Attempt,
    to_tag,
)
from pipeline.verbs.train import train_without_test
from tests.commands import (
    LEAN,
    carried_out,
    composed,
    configured,
    inside,
    pipeline,
    results,
)
from tests.stress.matrix import matrix
from tests.verbs.promote.test_describe import ATTEMPT

pytestmark = pytest.mark.slow

DATA = ("dataset=synthetic", "model=linear", *LEAN)
LENIENT = ("promote.min_test_accuracy=0.5", "promote.max_ece=1")


@dataclass(frozen=True)
class Runs:
    """Recorded runs by what they are good for."""

    folder: Path
    good: str
    other: str
    weak: str
    unevaluated: str


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A store with four runs: to be copied, for its artefacts are never changed."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    with inside(folder):
        for name, story, words in (
            ("good", run, ("train.epochs=4", "seed=1")),
            ("other", run, ("train.epochs=4", "seed=2")),
            ("weak", run, ("train.epochs=1", "optimizer.learning_rate=1e-7")),
            ("unevaluated", train_without_test, ("train.epochs=4", "seed=3")),
        ):
            story(configured(*DATA, *words), folder / "outputs" / name)
            experiment = mlflow.get_experiment_by_name("synthetic")
            [newest] = mlflow.MlflowClient().search_runs(
                [experiment.experiment_id], order_by=["start_time DESC"], max_results=1
            )
            made[name] = newest.info.run_id
    return Runs(folder=folder, **made)


@pytest.fixture(autouse=True)
def _brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each promotion measures how long single predictions take, which no test here looks at."""
    monkeypatch.setattr("pipeline.training.predictor.TIMED", 5)


@pytest.fixture
def runs(recorded: Runs, tmp_path: Path) -> Iterator[Runs]:
    """The same runs in a store of the test's own, which is the default while it lasts."""
    shutil.copy(recorded.folder / "mlflow.db", tmp_path)
    shutil.copytree(recorded.folder / "data", tmp_path / "data")
    with inside(tmp_path):
        connect(None)
        yield Runs(**vars(recorded) | {"folder": tmp_path})


def promoted(run_id: str, *words: str) -> None:
    carried_out("promote", *DATA, *LENIENT, f"run_id={run_id}", *words, folder=Path.cwd())


def rolled_back(*words: str) -> None:
    carried_out("rollback", *DATA, *words, folder=Path.cwd())


def registry() -> Registry:
    return open_registry(configured(*DATA).tracking, "synthetic")


def aliases() -> dict[str, int]:
    return dict(registry().present().aliases)


def ledger() -> list[Attempt]:
    return whole_ledger(registry(), registry().present())


def test_a_run_that_passes_is_champion_with_its_lineage_and_loads_by_alias(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(runs.good)
    out = capsys.readouterr().out
    assert results(out) == {
        "version": "1",
        "alias": "champion",
        "previous": "None",
        "run_id": runs.good,
    }
    assert f"\nrun {runs.good} is now the champion of synthetic\n" in out
    for shown in ("reproduces predictions", "test accuracy", "latency, ms", "passed"):
        assert shown in out
    version = registry().find(1)
    assert version is not None
    source = mlflow.MlflowClient().get_run(runs.good)
    tags = version.tags
    assert (version.run_id, tags["run_id"], tags[STATE]) == (runs.good, runs.good, DONE)
    assert tags["data.fingerprint"] == source.data.tags["data.fingerprint"]
    assert tags["code.commit"] == source.data.tags.get("mlflow.source.git.commit", "unknown")
    assert float(tags["test.accuracy"]) == pytest.approx(source.data.metrics["test/accuracy"])
    assert len(tags["config.sha256"]) == 64
    model = mlflow.tensorflow.load_model("models:/synthetic@champion")
    assert model.input_shape == (None, 28, 28, 1)
    [attempt] = ledger()
    assert (attempt.decision, attempt.run_id, attempt.version, attempt.replaces) == (
        PROMOTED,
        runs.good,
        1,
        None,
    )
    assert {gate.name: gate.passed for gate in attempt.gates}["reproduces predictions"]


def test_a_version_has_a_handful_of_short_tags_and_a_description(runs: Runs) -> None:
    client = mlflow.MlflowClient()
    client.log_text(runs.other, "<html></html>", "report.html")
    promoted(runs.good)
    promoted(runs.other, "promote.force=true", "promote.reason='| *better* |'")
    first, second = registry().find(1), registry().find(2)
    assert first is not None
    assert second is not None
    for version in (first, second):
        assert len(version.tags) <= 8
        assert all(0 < len(value) <= 64 for value in version.tags.values())
    assert second.tags["promotion.replaces"] == "1"
    told = client.get_model_version("synthetic", "2").description
    for part in (
        *(
            "**linear on synthetic**",
            "| test | &ensp;**",
            "in place of version 1",
            "| test accuracy |",
        ),
        *(f"runs/{runs.other}", "report.html", "&#124; &#42;better&#42; &#124;"),
        "python ",
    ):
        assert part in told, part
    model = client.get_registered_model("synthetic")
    assert "Its champion is version 2" in model.description
    assert f"`{runs.good[:8]}`" in model.description
    assert max(map(len, model.tags.values())) < 150


def test_a_description_of_the_user_s_own_is_kept(runs: Runs) -> None:
    client = mlflow.MlflowClient()
    client.create_registered_model("synthetic", description="Our shirts.")
    promoted(runs.good)
    assert client.get_registered_model("synthetic").description == "Our shirts."
    client.update_registered_model("synthetic", "")
    rolled_back("rollback.to=1")  # changes nothing, and describes nothing
    assert not client.get_registered_model("synthetic").description
    promoted(runs.other, "promote.force=true", "promote.reason=x")
    assert "Ledger" in client.get_registered_model("synthetic").description


def test_a_second_one_is_compared_with_the_champion_which_becomes_previous(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(runs.good)
    promoted(runs.other)
    assert aliases() == {CHAMPION: 2, PREVIOUS: 1}
    assert "not worse than version 1" in capsys.readouterr().out


def test_the_champion_promoted_again_is_said_and_nothing_changes(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(runs.good)
    before = registry().present()
    promoted(runs.good)
    assert "is the champion already; nothing was changed" in capsys.readouterr().out
    assert registry().present() == before


@matrix(36)
def test_a_worse_one_is_refused_by_the_paired_test_with_its_numbers(runs: Runs) -> None:
    promoted(runs.good)
    with pytest.raises(PipelineError) as refused:
        promoted(runs.weak, "promote.min_test_accuracy=0", "promote.min_class_recall=0")
    first, *complaints = str(refused.value).splitlines()
    assert first == f"run {runs.weak} is refused; nothing was changed"
    [complaint] = complaints
    assert complaint.startswith("not worse than version 1: ")
    assert "below -0.005" in complaint
    assert aliases() == {CHAMPION: 1}
    assert [attempt.decision for attempt in ledger()] == [PROMOTED, REFUSED]


def test_a_run_must_be_as_good_as_the_best_champion_so_far_not_as_the_last_alone(
    runs: Runs,
) -> None:
    promoted(runs.good)
    promoted(
        runs.weak, "promote.min_test_accuracy=0", "promote.min_class_recall=0", "promote.alpha=null"
    )
    mlflow.MlflowClient().delete_model_version("synthetic", "1")
    promoted(runs.other)
    gates = {gate.name for gate in ledger()[-1].gates}
    assert gates & {"not worse than version 1", "not worse than version 2"} == {
        "not worse than version 2"
    }


def test_a_former_champion_counts_until_somebody_overrules_the_gates(runs: Runs) -> None:
    promoted(runs.good)
    promoted(
        runs.weak, "promote.min_test_accuracy=0", "promote.min_class_recall=0", "promote.alpha=null"
    )
    promoted(runs.other)
    gates = {gate.name: gate for gate in ledger()[-1].gates}
    assert "version 1, the best champion so far, on" in gates["not worse than version 1"].says
    assert "not worse than version 2" in gates


def test_a_champion_of_other_data_is_asked_about_this_runs_test_images(runs: Runs) -> None:
    promoted(runs.good)
    mlflow.MlflowClient().set_model_version_tag("synthetic", "1", "data.fingerprint", "other")
    promoted(runs.other)
    same = [gate for gate in ledger()[-1].gates if gate.name == "not worse than version 1"]
    mlflow.MlflowClient().set_registered_model_alias("synthetic", CHAMPION, "1")
    mlflow.MlflowClient().set_model_version_tag(
        "synthetic",
        "1",
        "data.fingerprint",
        registry().find(2).tags["data.fingerprint"],  # type: ignore[union-attr]
    )
    promoted(runs.other)
    assert [gate for gate in ledger()[-1].gates if gate.name == "not worse than version 1"] == same


def test_a_refused_first_attempt_is_in_the_ledger_of_a_model_without_versions(runs: Runs) -> None:
    with pytest.raises(PipelineError, match="worst-class recall: 0"):
        promoted(runs.weak)
    assert aliases() == {}
    assert registry().find(1) is None
    [attempt] = ledger()
    assert (attempt.decision, attempt.run_id, attempt.version) == (REFUSED, runs.weak, None)
    assert "worst-class recall" in {gate.name for gate in attempt.gates if not gate.passed}


def test_a_refused_run_may_be_the_challenger_once_registered(runs: Runs) -> None:
    promoted(runs.good)
    for _ in range(2):
        with pytest.raises(PipelineError, match="version 2 is the challenger, the champion stays"):
            promoted(runs.weak, "promote.challenger=true")
    assert aliases() == {CHAMPION: 1, CHALLENGER: 2}


def test_force_promotes_with_its_reason_in_the_ledger(runs: Runs) -> None:
    promoted(runs.good)
    promoted(runs.weak, "promote.force=true", "promote.reason='the demo needs it'")
    assert aliases() == {CHAMPION: 2, PREVIOUS: 1}
    attempt = ledger()[-1]
    assert (attempt.decision, attempt.reason) == (FORCED, "the demo needs it")


@pytest.mark.parametrize("reason", [(), ("promote.reason=' '",)])
def test_force_without_a_reason_is_a_wrong_request(reason: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="promote.force=true needs a reason"):
        validate_request(composed("promote.force=true", *reason), "promote", Promote)


def test_best_is_the_highest_validation_accuracy_whatever_the_test_says(runs: Runs) -> None:
    client = mlflow.MlflowClient()
    for number, name in enumerate(("weak", "unevaluated", "other", "good")):
        client.log_metric(getattr(runs, name), "kept/val/accuracy", 0.1 * number, step=9)
    client.log_metric(runs.weak, "test/accuracy", 1.0, step=9)
    promoted("best")
    assert ledger()[-1].run_id == runs.good


def test_best_counts_the_epoch_that_was_kept_and_not_the_last_one(runs: Runs) -> None:
    client = mlflow.MlflowClient()
    for name, last, kept in (("other", 0.99, 0.3), ("good", 0.6, 0.5)):
        client.log_metric(getattr(runs, name), "val/accuracy", last, step=9)
        client.log_metric(getattr(runs, name), "kept/val/accuracy", kept, step=9)
    for name in ("weak", "unevaluated"):
        client.log_metric(getattr(runs, name), "kept/val/accuracy", 0.1, step=9)
    promoted("best")
    assert ledger()[-1].run_id == runs.good
    version = registry().find(1)
    assert version is not None
    assert version.tags["val.accuracy"] == "0.5"


@matrix(36)
def test_a_run_that_was_not_evaluated_is_refused_until_it_is(runs: Runs) -> None:
    with pytest.raises(PipelineError, match=r"evaluated on test: no, not yes .*evaluate run_id="):
        promoted(runs.unevaluated)


def model_file(runs: Runs) -> Path:
    client = mlflow.MlflowClient()
    uri = client.get_run(runs.good).data.tags["model_uri"]
    location = client.get_logged_model(uri.removeprefix("models:/")).artifact_location
    return Path(location.removeprefix("file://"), "data", "model.keras")


@pytest.fixture
def saved(runs: Runs) -> Iterator[Path]:
    """The file of the good run's model, put right again afterwards."""
    path = model_file(runs)
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


@matrix(36)
def test_a_model_whose_bytes_are_damaged_is_refused_even_by_force(runs: Runs, saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(PipelineError, match="model loads: no, not yes"):
        promoted(runs.good, "promote.force=true", "promote.reason='no matter what'")
    assert aliases() == {}
    assert ledger()[-1].decision == REFUSED


@matrix(36)
def test_a_model_that_is_not_the_one_that_was_evaluated_is_refused(runs: Runs, saved: Path) -> None:
    import keras

    model = keras.models.load_model(saved)
    model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    model.save(saved)
    with pytest.raises(PipelineError, match="reproduces predictions: 0"):
        promoted(runs.good)


def test_rollback_goes_to_the_version_before_and_is_recorded(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(runs.good)
    promoted(runs.other)
    rolled_back("rollback.reason='users complain'")
    assert results(capsys.readouterr().out) == {
        "version": "1",
        "alias": "champion",
        "previous": "None",
        "run_id": runs.good,
    }
    attempt = ledger()[-1]
    assert (
        attempt.decision,
        attempt.version,
        attempt.replaces,
        attempt.run_id,
        attempt.reason,
    ) == (
        ROLLED_BACK,
        1,
        2,
        runs.good,
        "users complain",
    )
    rolled_back("rollback.to=2")
    assert aliases() == {CHAMPION: 2, PREVIOUS: 1}
    rolled_back("rollback.to=2")
    assert "is the champion already" in capsys.readouterr().out
    assert len(ledger()) == 4


def test_rollback_with_nothing_to_go_back_to_is_a_wrong_request_that_says_so(runs: Runs) -> None:
    with pytest.raises(RequestError, match="synthetic has no champion to go back from"):
        rolled_back()
    promoted(runs.good)
    with pytest.raises(RequestError, match="nothing to go back to.*to=<version>"):
        rolled_back()
    with pytest.raises(RequestError, match="to=9: synthetic has no such version"):
        rolled_back("rollback.to=9")


def test_rollback_to_a_version_that_was_never_champion_is_refused(runs: Runs) -> None:
    promoted(runs.good)
    with pytest.raises(PipelineError, match="challenger"):
        promoted(runs.weak, "promote.challenger=true")
    with pytest.raises(RequestError, match="to=2: that version was never champion"):
        rolled_back("rollback.to=2")


def test_rollback_to_a_model_that_is_gone_is_refused(runs: Runs, saved: Path) -> None:
    promoted(runs.good)
    promoted(runs.other)
    folder = saved.parents[1]
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        with pytest.raises(RequestError, match="to=1: its model is gone"):
            rolled_back()
    finally:
        hidden.rename(folder)
    assert aliases() == {CHAMPION: 2, PREVIOUS: 1}


class Gathered(Exception):
    """Ends a promotion as soon as it has the evidence."""


@pytest.mark.parametrize(
    ("champion", "former"), [(3, [1, 2]), (None, [1, 2, 3]), (2, [1]), (9, [1, 2, 3])]
)
def test_a_candidate_is_compared_with_the_line_of_the_champion_or_the_last_one(
    champion: int | None, former: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moves = [replace(ATTEMPT, key=f"{ATTEMPT.key}{n}", version=n, replaces=None) for n in (1, 2, 3)]
    tags = {move.key: to_tag(move) for move in moves}
    versions = {n: SimpleNamespace(number=n, run_id="", fingerprint="f") for n in (1, 2, 3)}
    registered = Present(aliases={CHAMPION: champion} if champion else {}, tags=tags)
    known = SimpleNamespace(present=lambda: registered, find=versions.get, name="pets")
    candidate = SimpleNamespace(id="a", fingerprint="f", config=configured(*DATA))
    compared: list[int] = []

    def gather(*given: Any) -> None:
        compared.extend(version.number for version in given[3])
        raise Gathered

    monkeypatch.setattr(module, "find_trained", lambda *_, **__: candidate)
    monkeypatch.setattr(module, "open_registry", lambda *_: known)
    monkeypatch.setattr(module, "settle", lambda registry: None)
    monkeypatch.setattr("pipeline.verbs.promote.evidence.gather", gather)
    with pytest.raises(Gathered):
        promoted("a" * 32)
    assert compared == former


def test_history_of_nothing_says_how_it_begins(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    carried_out("history", *DATA, folder=runs.folder)
    assert capsys.readouterr().out == (
        "synthetic has no ledger yet; it begins with the first `promote`\n"
    )


def test_history_lists_promotions_refusals_and_rollbacks_newest_last(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    promoted(runs.good)
    with pytest.raises(PipelineError):
        promoted(runs.weak)
    capsys.readouterr()
    carried_out("history", *DATA, folder=runs.folder)
    shown = capsys.readouterr().out
    assert shown.index("promoted") < shown.index("refused") < shown.index("worst-class recall: 0")
    assert "champion: version 1" in shown


def test_history_is_one_json_document_for_scripts_even_before_it_begins(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> Any:
        carried_out("history", *DATA, "history.format=json", folder=runs.folder)
        return json.loads(capsys.readouterr().out)

    assert told() == {"model": "synthetic", "aliases": {}, "entries": []}
    promoted(runs.good)
    with pytest.raises(PipelineError):
        promoted(runs.weak)
    capsys.readouterr()
    document = told()
    assert document["aliases"] == {"champion": 1}
    assert [attempt["decision"] for attempt in document["entries"]] == [PROMOTED, REFUSED]
    assert [attempt["run_id"] for attempt in document["entries"]] == [runs.good, runs.weak]
    gates = {gate["name"]: gate for gate in document["entries"][1]["gates"]}
    assert gates["worst-class recall"]["passed"] is False
    assert gates["worst-class recall"]["value"] < gates["worst-class recall"]["limit"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say which run to promote"),
        (("run_id=0123",), "run_id=0123: there is no such run"),
        (("run_id=best", "dataset=digits"), "run_id=best: experiment digits has no finished run"),
    ],
)
def test_a_run_that_cannot_be_found_is_a_wrong_request(
    words: tuple[str, ...], message: str, runs: Runs
) -> None:
    with pytest.raises(RequestError, match=message):
        given = words if "dataset" in str(words) else (*DATA, *words)
        carried_out("promote", *given, folder=runs.folder)


def deadly(number: signal.Signals, name: str) -> None:
    """Lets this process send itself a signal after the first request of a name."""
    real = getattr(mlflow.MlflowClient, name)

    def and_die(*given: Any, **named: Any) -> Any:
        setattr(mlflow.MlflowClient, name, real)
        answer = real(*given, **named)
        os.kill(os.getpid(), number)
        return answer

    setattr(mlflow.MlflowClient, name, and_die)


def stopped(runs: Runs, number: signal.Signals, request: str) -> subprocess.CompletedProcess[str]:
    """A promotion of the other run that gets a signal after its first request of that name."""
    words = ("promote", DATA[0], *LENIENT, f"run_id={runs.other}")
    return pipeline(*words, cwd=runs.folder, before=partial(deadly, number, request))


@pytest.mark.parametrize(
    ("request_", "aliases_", "decision"),
    [
        ("create_model_version", {CHAMPION: 1}, ABANDONED),
        ("set_registered_model_alias", {CHAMPION: 2, PREVIOUS: 1}, PROMOTED),
    ],
)
def test_ctrl_c_in_a_promotion_leaves_nothing_for_others_to_wait_for(
    runs: Runs, request_: str, aliases_: dict[str, int], decision: str
) -> None:
    promoted(runs.good)
    ended = stopped(runs, signal.SIGINT, request_)
    assert ended.returncode == 128 + signal.SIGINT, ended.stderr
    assert ended.stderr == "stopped by SIGINT; what was recorded so far is kept\n"
    assert aliases() == aliases_
    assert registry().pending() == []
    assert [attempt.decision for attempt in ledger()] == [PROMOTED, decision]


@matrix(9)
def test_a_command_killed_as_it_moved_the_champion_is_completed_by_the_next(runs: Runs) -> None:
    promoted(runs.good)
    ended = stopped(runs, signal.SIGKILL, "set_registered_model_alias")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert aliases() == {CHAMPION: 2}
    assert len(ledger()) == 1
    carried_out("history", *DATA, folder=runs.folder)
    assert aliases() == {CHAMPION: 2, PREVIOUS: 1}
    assert [attempt.decision for attempt in ledger()] == [PROMOTED, PROMOTED]
    assert ABANDONED not in {attempt.decision for attempt in ledger()}
    mlflow.tensorflow.load_model("models:/synthetic@champion")


def test_the_commands_end_with_their_exit_codes_and_say_why(runs: Runs) -> None:
    refused = pipeline("promote", DATA[0], f"run_id={runs.weak}", cwd=runs.folder)
    assert refused.returncode == 1
    assert "worst-class recall" in refused.stdout
    told = refused.stderr.splitlines()
    assert told[0] == f"run {runs.weak} is refused; nothing was changed"
    assert told[-1].startswith("The log is in ")
    wrong = pipeline("promote", DATA[0], f"run_id={runs.weak}", "force=true", cwd=runs.folder)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == 'promote.force=true needs a reason, for the ledger: reason="…"\n'
    forced = pipeline(
        "promote",
        DATA[0],
        f"run_id={runs.weak}",
        "force=true",
        "reason=a demo, no more",
        cwd=runs.folder,
    )
    assert (forced.returncode, forced.stderr) == (0, "")
    assert results(forced.stdout)["version"] == "1"
    shown = pipeline("history", DATA[0], cwd=runs.folder)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "“a demo, no more”" in shown.stdout
    scripted = pipeline("history", DATA[0], "format=json", cwd=runs.folder)
    assert json.loads(scripted.stdout)["entries"][-1]["reason"] == "a demo, no more"
    nowhere = pipeline("rollback", DATA[0], cwd=runs.folder)
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "nothing to go back to" in nowhere.stderr
