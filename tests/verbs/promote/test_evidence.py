from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.data.values import Array, RawData, Split
from pipeline.system.errors import RequestError
from pipeline.tracking.client import StoreAway
from pipeline.tracking.values import StoredPredictions, Version
from pipeline.verbs.promote import evidence
from pipeline.verbs.promote.evidence import gather
from pipeline.verbs.promote.gates import Champion, Evidence
from tests.commands import configured

pytestmark = pytest.mark.slow  # it imports TensorFlow
LABELS = np.array([0, 1, 1], np.int32)
CONFIG: Any = SimpleNamespace(
    data_dir="data", tracking=None, evaluate=SimpleNamespace(batch_size=2)
)


def probabilities(*classes: int) -> Array:
    found: Array = np.eye(2, dtype=np.float32)[list(classes)]
    return found


def split(labels: Array = LABELS) -> Split:
    return Split(images=np.zeros((len(labels), 2, 2, 1), np.uint8), labels=labels)


RAW = RawData(train=split(), test=split(), class_names=("cat", "dog"), source="a test")


class Run:
    """A recorded run with predictions of the test images, or without any."""

    def __init__(self, *classes: int, labels: Array = LABELS) -> None:
        self.status, self.fingerprint, self.model_uri = "FINISHED", RAW.fingerprint, "models:/m-1"
        self.identity = None  # of no use without a cache
        self.config = configured("dataset=synthetic")
        self.classes, self.labels = classes, labels

    def predictions(self) -> dict[str, StoredPredictions]:
        if not self.classes:
            raise RequestError("the run has no predictions.npz")
        found = probabilities(*self.classes)
        names = RAW.class_names
        return {
            "test": StoredPredictions(labels=self.labels, probabilities=found, class_names=names)
        }


def version(number: int, run: str, fingerprint: str = RAW.fingerprint) -> Version:
    return Version(
        number=number,
        uri=f"models:/pets/{number}",
        source="",
        run_id=run,
        tags={"data.fingerprint": fingerprint},
        age_s=0.0,
    )


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By address: the classes that a model predicts, or the error of loading it."""
    known: dict[str, Any] = {"models:/m-1": (0, 1, 1)}

    def load_model(uri: str, tracking: Any) -> Any:
        if isinstance(known[uri], Exception):
            raise known[uri]
        more = {"image_shape": (2, 2, 1), "class_names": ("cat", "dog")}
        return SimpleNamespace(model=known[uri], megabytes=1.5, **more)

    def predict(model: Any, test: Split, batch_size: int) -> Array:
        return probabilities(*model)

    monkeypatch.setattr(evidence, "ingest", lambda config, **_: RAW)
    monkeypatch.setattr(evidence, "load_model", load_model)
    monkeypatch.setattr(evidence, "predict", predict)
    monkeypatch.setattr(evidence, "single_image_ms", lambda model, test: 2.5)
    return known


def gathered(
    candidate: Run,
    champion: Version | None = None,
    former: tuple[Version, ...] = (),
    monkeypatch: pytest.MonkeyPatch | None = None,
    **runs: Run,
) -> Evidence:
    def find_run(run_id: str, config: Any) -> Run:
        if run_id not in runs:
            raise RequestError("there is no such run")
        return runs[run_id]

    if monkeypatch:
        monkeypatch.setattr(evidence, "find_run", find_run)
    return gather(candidate, CONFIG, champion, former)  # type: ignore[arg-type]


def predicted(champion: Champion | None) -> list[int] | None:
    return None if champion is None or champion.predicted is None else champion.predicted.tolist()


def test_of_a_sound_candidate_all_is_known(loads: dict[str, Any]) -> None:
    found = gathered(Run(0, 1, 0))
    assert (found.status, found.fingerprint, found.load_error) == ("FINISHED", RAW.fingerprint, "")
    assert found.fingerprint_now == RAW.fingerprint
    assert (found.model_mb, found.latency_ms) == (1.5, 2.5)
    assert found.logged is not None
    assert found.logged.predicted.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(found.reproduced, probabilities(0, 1, 1))
    assert found.champion is None


def test_a_candidate_that_was_not_evaluated_is_compared_with_nobody(
    loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gathered(Run(), version(1, "a"), (version(2, "b"),), monkeypatch)
    assert (found.logged, found.champion, found.best) == (None, None, None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RequestError("models:/m-1: its file is damaged"), "models:/m-1: its file is damaged"),
        (OSError("disk full"), "OSError: disk full"),
    ],
)
def test_a_model_that_does_not_load_is_told_with_the_reason(
    error: Exception, said: str, loads: dict[str, Any]
) -> None:
    loads["models:/m-1"] = error
    found = gathered(Run(0, 1, 1))
    assert (found.reproduced, found.load_error) == (None, said)
    assert np.isnan([found.model_mb, found.latency_ms]).all()


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"image_shape": (9, 9, 3)}, "takes images of shape (9, 9, 3), not (2, 2, 1)"),
        ({"class_names": ("a", "b", "c")}, "its classes are a, b, c"),
    ],
)
def test_a_model_of_other_images_or_classes_counts_as_not_loaded(
    known: dict[str, Any], said: str, loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = {"image_shape": (2, 2, 1), "class_names": ("cat", "dog"), "model": None}
    monkeypatch.setattr(
        evidence, "load_model", lambda uri, tracking: SimpleNamespace(**(fits | known))
    )
    found = gathered(Run(0, 1, 1))
    assert found.reproduced is None
    assert said in found.load_error


def test_a_store_that_goes_away_says_nothing_of_a_model(loads: dict[str, Any]) -> None:
    loads["models:/m-1"] = StoreAway("it answers 503")
    with pytest.raises(StoreAway, match="503"):
        gathered(Run(0, 1, 1))


def test_the_champions_logged_answers_count_where_its_images_are_these(
    loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gathered(Run(0, 1, 1), version(1, "a"), monkeypatch=monkeypatch, a=Run(1, 1, 1))
    assert found.champion is not None
    assert (found.champion.version, predicted(found.champion)) == (1, [1, 1, 1])


def test_a_champion_of_other_data_predicts_these_images(
    loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads["models:/pets/1"] = (0, 0, 0)
    champion = version(1, "a", fingerprint="e" * 64)
    found = gathered(Run(0, 1, 1), champion, monkeypatch=monkeypatch, a=Run(1, 1, 1))
    assert predicted(found.champion) == [0, 0, 0]
    loads["models:/pets/1"] = OSError("gone")
    found = gathered(Run(0, 1, 1), champion, monkeypatch=monkeypatch, a=Run(1, 1, 1))
    assert found.champion is not None
    assert (found.champion.predicted, found.champion.problem) == (None, "OSError: gone")


def test_a_candidate_of_images_that_are_gone_leaves_the_champion_without_answers(
    loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = np.array([1, 0], np.int32)
    candidate = Run(1, 0, labels=others)
    found = gathered(candidate, version(1, "a"), monkeypatch=monkeypatch, a=Run(1, 1, 1))
    assert found.champion is not None
    assert found.champion.problem == "the candidate's test images are no longer there"


def test_the_best_former_champion_counts_if_it_was_right_more_often_than_the_current_one(
    loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    former = (version(2, "right"), version(3, "wrong"), version(4, "gone"), version(5, "other"))
    runs = {
        "now": Run(0, 1, 0),
        "right": Run(0, 1, 1),
        "wrong": Run(1, 0, 0),
        "other": Run(0, 1, labels=np.array([0, 1], np.int32)),
    }
    found = gathered(Run(0, 1, 1), version(1, "now"), former, monkeypatch, **runs)
    assert found.best is not None
    assert (found.best.version, found.best.is_former) == (2, True)
    assert predicted(found.best) == [0, 1, 1]
    found = gathered(Run(0, 1, 1), version(1, "right"), former, monkeypatch, **runs)
    assert found.best is None


def test_without_a_champion_the_best_former_one_counts(
    loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"right": Run(0, 1, 1), "wrong": Run(1, 0, 0)}
    former = (version(1, "wrong"), version(2, "right"))
    found = gathered(Run(0, 1, 1), None, former, monkeypatch, **runs)
    assert found.champion is None
    assert found.best is not None
    assert (found.best.version, found.best.is_former) == (2, True)


def test_a_champion_that_has_the_classes_in_another_order_is_compared_by_their_names(
    loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads["models:/pets/1"] = (1, 0, 0)  # dog, cat, cat by number: all wrong
    load_model = evidence.load_model

    def turned(uri: str, tracking: Any) -> Any:
        return SimpleNamespace(**vars(load_model(uri, tracking)) | {"class_names": ("dog", "cat")})

    monkeypatch.setattr(evidence, "load_model", turned)
    champion = version(1, "a", fingerprint="e" * 64)
    found = gathered(Run(0, 1, 1), champion, monkeypatch=monkeypatch, a=Run(1, 1, 1))
    assert predicted(found.champion) == [0, 1, 1]


def test_a_candidate_of_data_that_had_other_classes_is_judged_by_the_gates(
    loads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = RawData(train=split(), test=split(), class_names=("cat", "cow", "dog"), source="now")
    monkeypatch.setattr(evidence, "ingest", lambda config, **_: now)
    found = gathered(Run(0, 1, 1))
    assert found.logged is not None
    assert found.logged.class_names == ("cat", "dog")
    assert found.fingerprint != found.fingerprint_now
