from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from pipeline.sweeps.jobs import grid
from pipeline.sweeps.manifest import MANIFEST_FILE, Manifest, jobs_of, manifest
from pipeline.system.errors import RequestError
from tests.sweeps.test_jobs import multirun

pytestmark = pytest.mark.slow


@cache
def of_grid(*words: str) -> Manifest:
    asked = multirun(*words)
    return manifest(
        asked, [(job, asked.compose(job)) for job in grid(asked.searched)], adaptive=False
    )


def of_search(*words: str) -> Manifest:
    return manifest(multirun(*words), [], adaptive=True)


def test_a_grid_has_each_job_with_its_parameters_and_checksum(tmp_path: Path) -> None:
    of_grid("seed=0,1", "model.dropout=0.1").save(tmp_path)
    kept = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert kept["searched"] == {"seed": "0,1"}
    assert "seed" not in kept["base"]
    assert kept["base"]["model.dropout"] == "0.1"
    assert [(job["index"], job["params"]) for job in kept["jobs"]] == [
        (0, {"seed": "0"}),
        (1, {"seed": "1"}),
    ]
    checksums = {job["config_sha256"] for job in kept["jobs"]}
    assert len(checksums) == 2
    assert all(len(checksum) == 64 for checksum in checksums)


def test_the_same_sweep_is_the_same_however_it_is_got_through(tmp_path: Path) -> None:
    of_grid("seed=0,1").save(tmp_path)
    ways = (
        "sweep.resume=latest",
        "sweep.keep_models=1",
        "data_dir=elsewhere",
        "tracking.run_name=me",
    )
    of_grid("seed=0,1", *ways).require_same(tmp_path)


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (("seed=0,1,2",), "seed was 0,1, is 0,1,2"),
        (("seed=0,1", "train.epochs=3"), "train.epochs was 20, is 3"),
        (("seed=0,1", "sweep.objective=[val/loss]"), r"objective was \['val/accuracy'\]"),
        (("train.epochs=1,2",), "seed was 0,1, is nothing"),
    ],
)
def test_another_sweep_is_refused_with_the_difference(
    words: tuple[str, ...], difference: str, tmp_path: Path
) -> None:
    of_grid("seed=0,1").save(tmp_path)
    with pytest.raises(RequestError, match=rf"not the same sweep[\s\S]*{difference}"):
        of_grid(*words).require_same(tmp_path)


def test_a_search_may_be_given_more_trials_but_no_other_sampler(tmp_path: Path) -> None:
    space = "model.dropout=interval(0,0.5)"
    of_search(space, "sweep.n_trials=5").save(tmp_path)
    of_search(space, "sweep.n_trials=9").require_same(tmp_path)
    with pytest.raises(RequestError, match="sampler was tpe, is random"):
        of_search(space, "sweep.sampler=random").require_same(tmp_path)


@pytest.mark.parametrize(
    ("then", "now", "difference"),
    [
        (
            "dataset=mnist",
            "dataset=fashion_mnist",
            "dataset._target_ was .*mnist, is .*fashion_mnist",
        ),
        (
            "optimizer=adam",
            "optimizer._target_=keras.optimizers.Nadam",
            "optimizer._target_ was keras.optimizers.Adam, is keras.optimizers.Nadam",
        ),
    ],
)
def test_a_search_is_resumed_with_its_own_builders_only(
    then: str, now: str, difference: str, tmp_path: Path
) -> None:
    space = "model.dropout=interval(0,0.5)"
    made = of_search(space, then)
    made.save(tmp_path)
    made.require_same(tmp_path)
    with pytest.raises(RequestError, match=difference):
        of_search(space, now).require_same(tmp_path)


def test_a_search_of_an_earlier_version_did_not_record_its_builders(tmp_path: Path) -> None:
    now = of_search("model.dropout=interval(0,0.5)")
    then = json.loads(now.text)
    then["base"] = {key: value for key, value in then["base"].items() if "_target_" not in key}
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(then))
    now.require_same(tmp_path)


def test_values_that_an_earlier_version_kept_as_typed_are_the_same(tmp_path: Path) -> None:
    words = ("optimizer=sgd,rmsprop", "optimizer.momentum=0.9", "model.hidden=[8,4]")
    now = of_grid(*words, "+optimizer.global_clipnorm=1", "model.dropout=1e-1")
    then = json.loads(now.text)
    assert (then["base"]["model.dropout"], then["base"]["model.hidden"]) == ("0.1", "[8, 4]")
    then["base"]["optimizer.global_clipnorm"] = "null"
    typed = {"model.hidden": "[8,4]", "+optimizer.global_clipnorm": "1", "model.dropout": "1e-1"}
    then["base"] |= typed
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(then))
    now.require_same(tmp_path)
    then["base"]["model.dropout"] = "2e-1"
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(then))
    with pytest.raises(RequestError, match=r"one to resume:\n  model.dropout was 2e-1, is 0.1$"):
        now.require_same(tmp_path)


@pytest.mark.parametrize(
    ("word", "difference"),
    [
        ("sweep.storage=sqlite:///other.db", "storage was sqlite:///s.db, is sqlite:///other.db"),
        ("sweep.study=other", "study was x, is other"),
    ],
)
def test_a_search_is_resumed_with_its_own_study_only(
    word: str, difference: str, tmp_path: Path
) -> None:
    space, place = (
        "model.dropout=interval(0,0.5)",
        ("sweep.storage=sqlite:///s.db", "sweep.study=x"),
    )
    of_search(space, *place).save(tmp_path)
    of_search(space, *place, "sweep.n_trials=9").require_same(tmp_path)
    with pytest.raises(RequestError, match="storage was sqlite:///s.db, is None"):
        of_search(space).require_same(tmp_path)
    key = word.partition("=")[0]
    others = [one for one in place if not one.startswith(key)]
    with pytest.raises(RequestError, match=difference):
        of_search(space, word, *others).require_same(tmp_path)


def test_a_search_of_an_earlier_version_did_not_record_its_study(tmp_path: Path) -> None:
    words = ("model.dropout=interval(0,0.5)", "sweep.storage=sqlite:///s.db", "sweep.study=x")
    then = json.loads(of_search(*words).text)
    del then["settings"]["storage"], then["settings"]["study"]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(then))
    of_search(*words).require_same(tmp_path)


def test_a_password_of_the_studys_storage_is_not_in_the_manifest(tmp_path: Path) -> None:
    storage = "postgresql://me:canary@host/studies"
    made = of_search("model.dropout=interval(0,0.5)", f"sweep.storage={storage}")
    assert "canary" not in made.text
    made.save(tmp_path)
    made.require_same(tmp_path)


def test_a_folder_without_a_manifest_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"manifest.json cannot be read"):
        of_grid("seed=0,1").require_same(tmp_path)


def test_a_sweep_of_an_earlier_version_is_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sweeps.manifest.ADDED", {"train.patience": None})
    now = of_grid("seed=0,1")
    then = json.loads(now.text)
    del then["base"]["train.patience"], then["base"]["model.residual"]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(then))
    now.require_same(tmp_path)
    with pytest.raises(RequestError, match=r"train\.patience was null, is 3"):
        of_grid("seed=0,1", "train.patience=3").require_same(tmp_path)


def test_a_shuffled_grid_is_resumed_in_the_order_that_it_had(tmp_path: Path) -> None:
    words = ("seed=shuffle(range(0,8))", "train.epochs=1,2")
    first = of_grid(*words)
    first.save(tmp_path)
    asked = multirun(*words, "sweep.keep_models=1")
    jobs = jobs_of(tmp_path, asked)
    assert [job.params for job in jobs] == [job["params"] for job in first.jobs]
    assert [job.params for job in jobs] != [job.params for job in grid(asked.searched)]
    resumed = manifest(asked, [(job, asked.compose(job)) for job in jobs], adaptive=False)
    resumed.require_same(tmp_path)
    assert jobs_of(tmp_path, multirun("seed=shuffle(range(0,9))", "train.epochs=1,2")) == []
    assert jobs_of(tmp_path / "nowhere", asked) == []


def test_a_setting_whose_name_only_sounds_secret_tells_sweeps_apart(tmp_path: Path) -> None:
    def made(dim: str, key: str = "one-token-of-many") -> Manifest:
        base = {"model.token_dim": dim, "dataset.api_key": key}
        job = {"index": 0, "params": {"model.token_rate": "0.5"}, "config_sha256": "a"}
        searched = {"model.token_rate": "0.5,0.7"}
        return Manifest(searched=searched, settings={}, base=base, jobs=[job])

    made("64").save(tmp_path)
    kept = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert kept["base"] == {"model.token_dim": "64", "dataset.api_key": "***"}
    assert kept["searched"] == {"model.token_rate": "0.5,0.7"}
    assert kept["jobs"][0]["params"] == {"model.token_rate": "0.5"}
    made("64", "another-token").require_same(tmp_path)
    with pytest.raises(RequestError, match="model.token_dim was 64, is 128"):
        made("128").require_same(tmp_path)


def test_a_token_of_digits_is_hidden_in_a_manifest_as_in_the_configuration() -> None:
    asked = multirun("seed=0,1")
    dataset = {**asked.config.dataset, "api_key": "12345678"}
    vars(asked)["config"] = replace(asked.config, dataset=dataset)  # as with a module of one's own
    assert manifest(asked, [], adaptive=False).base["dataset.api_key"] == "***"


def test_a_shuffled_grid_over_a_name_that_sounds_secret_is_resumed(tmp_path: Path) -> None:
    word = "+tracking.tags.token_dim=shuffle(range(0,8))"
    asked = multirun(word)
    first = Manifest(
        searched={"+tracking.tags.token_dim": word.partition("=")[2]},
        settings={},
        base={},
        jobs=[{"index": job.index, "params": job.params} for job in grid(asked.searched)],
    )
    first.save(tmp_path)
    assert [job.params for job in jobs_of(tmp_path, asked)] == [one["params"] for one in first.jobs]
    for one in first.jobs:
        one["params"]["+tracking.tags.token_dim"] = "***"
    first.save(tmp_path)
    assert jobs_of(tmp_path, asked) == []  # jobs with hidden values cannot be run


def test_what_an_earlier_version_hid_is_unknown_and_the_rest_must_be_the_same(
    tmp_path: Path,
) -> None:
    storage = "postgresql://me@db/optuna"
    now = Manifest(
        searched={"model.token_dim": "32,64"},
        settings={"storage": storage},
        base={"model.tokens": "8"},
        jobs=[{"index": 0, "params": {"model.token_dim": "32"}, "config_sha256": "a"}],
    )
    text = now.text.replace("me@db", "***@db").replace('"32,64"', '"***"')
    text = text.replace('"32"', '"***"').replace('"8"', '"***"')
    (tmp_path / MANIFEST_FILE).write_text(text)
    now.require_same(tmp_path)
    other = replace(now, settings={"storage": storage.replace("db", "other")})
    with pytest.raises(RequestError, match=r"storage was postgresql://\*\*\*@db/optuna, is "):
        other.require_same(tmp_path)
    with pytest.raises(RequestError, match=r"1 jobs then, 1 now; different: \[0\]"):
        replace(now, jobs=[{**now.jobs[0], "config_sha256": "b"}]).require_same(tmp_path)
