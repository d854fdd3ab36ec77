from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from pipeline.config.sweep import Sweep
from pipeline.sweeps.outcomes import FAILED, FINISHED, PRUNED, Outcome
from pipeline.sweeps.study import (
    STORAGE,
    Search,
    open_storage,
    pass_on_secret_address,
    pruning_listener,
    require_sense,
    require_shareable,
    require_trials,
)
from pipeline.system.errors import Pruned, RequestError
from tests.stress.matrix import matrix
from tests.sweeps.test_jobs import multirun

pytestmark = pytest.mark.slow  # importing Optuna takes a second
asked = cache(multirun)  # composing takes longer than searching
HYPERBAND = ("sweep.pruner=hyperband",)
SPACE = ("optimizer.learning_rate=tag(log,interval(1e-4,1e-2))", "model.dropout=interval(0,0.5)")


def settings(folder: Path, *words: str) -> Sweep:
    config = asked(*SPACE, *words).config
    return replace(config.sweep, storage=str(folder / "study.journal"), study="s")


def search(
    folder: Path, *words: str, space: tuple[str, ...] = SPACE, sweep_id: str = "s"
) -> Search:
    searched = asked(*space).searched
    return Search(settings(folder, *words), searched, sweep_id=sweep_id)


def value(params: Any) -> float:
    rate, dropout = (float(text) for text in params.values())
    return -((rate - 0.003) ** 2) * 1e4 - (dropout - 0.2) ** 2


def ended(index: int, params: Any, state: str = FINISHED) -> Outcome:
    return Outcome(index=index, status=state, params=params, values=(value(params),))


def sensible(sweep: Sweep, *space: str) -> None:
    require_sense(sweep, asked(*(space or SPACE)).searched)


def carry_out(source: Search, most: int = 1000) -> list[Any]:
    proposed = []
    for job in source.jobs():
        proposed.append(dict(job.params))
        source.tell(ended(job.index, job.params))
        if len(proposed) == most:
            break
    return proposed


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("postgresql+pg8000://u:secret@host/x", "its driver is not installed: pip install pg8000"),
        ("sqlite:////no/such/folder/study.db", "unable to open database file"),
        ("mongo://host/x", "Can't load plugin: sqlalchemy.dialects:mongo"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_with_the_reason(place: str, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        open_storage(place)
    assert str(refused.value).startswith("sweep.storage=")
    assert str(refused.value).endswith(f" cannot be used: {said}")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_the_same_seed_proposes_the_same_and_another_does_not(sampler: str, tmp_path: Path) -> None:
    one, same, other = (
        carry_out(search(tmp_path / name, "sweep.n_trials=14", f"sweep.sampler={sampler}", seed))
        for name, seed in (("a", "sweep.seed=1"), ("b", "sweep.seed=1"), ("c", "sweep.seed=2"))
    )
    assert one == same
    assert one != other
    assert len({str(params) for params in one}) == 14


def test_a_resumed_search_proposes_what_the_whole_one_would_have(tmp_path: Path) -> None:
    whole = carry_out(search(tmp_path / "whole", "sweep.n_trials=14"))
    first = carry_out(search(tmp_path / "two", "sweep.n_trials=14"), most=11)
    assert first + carry_out(search(tmp_path / "two", "sweep.n_trials=14")) == whole


@pytest.mark.parametrize("never_written", [b"", b"\0" * 9], ids=["short", "empty"])
def test_a_search_whose_journal_ends_in_half_a_line_is_resumed(
    never_written: bytes, tmp_path: Path
) -> None:
    whole, journal = carry_out(search(tmp_path / "whole")), tmp_path / "study.journal"
    carry_out(search(tmp_path), 3)
    journal.write_bytes(journal.read_bytes()[:-9] + never_written)  # of the outcome of trial 2
    resumed = search(tmp_path)
    resumed.catch_up({2: ended(2, whole[2])})
    assert carry_out(resumed) == whole[3:]
    states = {trial.state.name for trial in search(tmp_path).study.trials}
    assert states == {"COMPLETE"}


@pytest.mark.parametrize(
    "content", [b"SQLite format 3\0", b"a\nb\n", b"[]\n", b"{}\n", b"a: 1\n", b"\n"]
)
def test_a_file_that_is_no_journal_is_refused_and_stays(content: bytes, tmp_path: Path) -> None:
    (file := tmp_path / "study.db").write_bytes(content)
    with pytest.raises(RequestError, match=r"study.db: this is no journal of Optuna.* sqlite:///"):
        open_storage(str(file))
    assert file.read_bytes() == content


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"this is no journal of Optuna"):
        open_storage(str(tmp_path))


@pytest.mark.parametrize("said", ["UNIQUE constraint failed: x", "table studies already exists"])
def test_a_new_database_whose_tables_another_process_makes_too_is_opened(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = sa.exc.IntegrityError if said.startswith("UNIQUE") else sa.exc.OperationalError
    itself, errors = optuna.storages.RDBStorage, [kind("CREATE", {}, Exception(said))]

    def opened(address: str) -> Any:
        if errors:
            raise errors.pop()
        return itself(address)

    monkeypatch.setattr("optuna.storages.RDBStorage", opened)
    assert open_storage(f"sqlite:///{tmp_path}/study.db").get_all_studies() == []


def test_n_trials_is_a_total(tmp_path: Path) -> None:
    assert len(carry_out(search(tmp_path, "sweep.n_trials=4"))) == 4
    assert len(carry_out(search(tmp_path, "sweep.n_trials=4"))) == 0
    assert len(carry_out(search(tmp_path, "sweep.n_trials=6"))) == 2


def test_a_grid_by_optuna_tries_every_combination_once(tmp_path: Path) -> None:
    space = ("model=mlp,cnn", "seed=range(0,3)")
    source = search(tmp_path, "sweep.sampler=grid", "sweep.n_trials=6", space=space)
    proposed = []
    for job in source.jobs():
        proposed.append(tuple(job.params.values()))
        source.tell(Outcome(index=job.index, status=FINISHED, params=job.params, values=(0.0,)))
    assert sorted(proposed) == [(m, s) for m in ("cnn", "mlp") for s in "012"]


def test_a_grid_by_optuna_ends_when_every_combination_was_tried(tmp_path: Path) -> None:
    space = ("model=mlp,cnn", "seed=range(0,3)", "model.dropout=0.1")
    source = search(tmp_path, "sweep.sampler=grid", space=space)
    assert source.total == 6
    first = [next(source.jobs()) for _ in range(4)]
    source.tell(Outcome(index=0, status=FAILED, params=first[0].params, values=(0.0,)))
    again = search(tmp_path, "sweep.sampler=grid", space=space)  # of the others, nothing is known
    again.catch_up({1: Outcome(index=1, status=FINISHED, params=first[1].params, values=(0.0,))})
    params = [job.params for job in again.jobs()]
    assert params[:3] == [first[0].params, first[2].params, first[3].params]
    tried = [first[1].params, *params]
    assert len(tried) == len({tuple(one.values()) for one in tried}) == 6


@pytest.mark.parametrize("space", [("seed=0,1",), ("seed=range(0,3)", "model=mlp,cnn")])
def test_a_grid_by_optuna_shares_no_study_of_another_space(
    space: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("sweep.sampler=grid",)
    mine = ("model=mlp,cnn", "seed=range(0,3)")
    next(search(tmp_path, *words, space=mine).jobs())
    storage = open_storage(str(tmp_path / "study.journal"))
    shared(storage, settings(tmp_path, *words), mine)
    with pytest.raises(RequestError, match="^sweep.study=s: "):
        shared(storage, settings(tmp_path, *words), space)


@pytest.mark.parametrize(
    "space", ["model.dropout=interval(0,0.5)", "seed=int(interval(0,1000000))"]
)
def test_a_grid_by_optuna_needs_values_that_can_be_counted(space: str, tmp_path: Path) -> None:
    key = space.partition("=")[0]
    with pytest.raises(RequestError, match=f"grid: {key} may have at most 100,000 values; list"):
        sensible(settings(tmp_path, "sweep.sampler=grid"), space)


def test_trials_that_were_killed_or_failed_are_proposed_again(tmp_path: Path) -> None:
    source = search(tmp_path, "sweep.n_trials=5")
    jobs = list(islice(source.jobs(), 3))
    source.tell(ended(0, jobs[0].params))
    source.tell(ended(1, jobs[1].params, FAILED))
    # The process is killed: 2 still runs for Optuna; a new one takes over.
    again = search(tmp_path, "sweep.n_trials=5")
    known = again.known_jobs()
    assert {index: job.params for index, job in known.items()} == {
        job.index: job.params for job in jobs
    }
    again.catch_up({0: ended(0, jobs[0].params), 1: ended(1, jobs[1].params, FAILED)})
    proposed = carry_out(again)
    assert proposed[:2] == [jobs[1].params, jobs[2].params]
    assert len(proposed) == 4  # five in all
    assert len(again.known_jobs()) == 5


def test_a_trial_that_finished_while_the_sweep_was_killed_is_not_proposed_again(
    tmp_path: Path,
) -> None:
    source = search(tmp_path, "sweep.n_trials=3")
    job = next(source.jobs())
    again = search(tmp_path, "sweep.n_trials=3")
    again.catch_up({job.index: ended(job.index, job.params)})
    assert job.params not in carry_out(again)
    assert len(again.study.trials) == 3


def test_a_trial_taken_for_failed_whose_run_finished_later_is_not_proposed_again(
    tmp_path: Path,
) -> None:
    source = search(tmp_path, "sweep.n_trials=3")
    job = next(source.jobs())
    source.tell(ended(0, job.params, FAILED))  # its process was not heard of
    again = search(tmp_path, "sweep.n_trials=3")
    again.catch_up({0: ended(0, job.params)})
    assert len(carry_out(again)) == 2
    assert sorted(again.known_jobs()) == [0, 1, 2]


@matrix(7)
def test_sweeps_that_share_a_study_count_each_others_trials(tmp_path: Path) -> None:
    one = search(tmp_path, "sweep.n_trials=6", sweep_id="one").jobs()
    other = search(tmp_path, "sweep.n_trials=6", sweep_id="other")
    numbers = [next(one).index for _ in range(4)] + [job.index for job in other.jobs()]
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert sorted(other.known_jobs()) == [4, 5]


def shared(storage: Any, sweep: Sweep, space: tuple[str, ...] = SPACE) -> None:
    require_shareable(storage, sweep, asked(*space).searched)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("[val/loss]", "its trials maximize val/accuracy, those of this sweep minimize val/loss"),
        ("[time/images_per_s]", "those of this sweep maximize time/images_per_s"),
        (
            "[val/accuracy,model/parameters]",
            "those of this sweep maximize val/accuracy and minimize model/parameters",
        ),
    ],
)
def test_a_study_of_other_objectives_is_not_shared(
    objective: str, said: str, tmp_path: Path
) -> None:
    search(tmp_path)
    storage = open_storage(str(tmp_path / "study.journal"))
    with pytest.raises(RequestError, match=f"^sweep.study=s: .*{said}"):
        shared(storage, settings(tmp_path, f"sweep.objective={objective}"))
    shared(storage, settings(tmp_path, "sweep.sampler=random"))
    shared(storage, replace(settings(tmp_path), study="new"))


def test_the_study_of_a_sweep_to_resume_has_the_trials_of_its_jobs(tmp_path: Path) -> None:
    source = search(tmp_path, sweep_id="mine")
    mine = [next(source.jobs()).index for _ in range(2)]
    other = next(search(tmp_path, sweep_id="other").jobs()).index
    storage, named = open_storage(str(tmp_path / "study.journal")), settings(tmp_path)
    require_trials(storage, named, sweep_id="mine", jobs=mine)
    for study, jobs in (("s", [*mine, other]), ("s", [7]), ("another", mine)):
        with pytest.raises(
            RequestError, match=f"^sweep.resume=mine: .*sweep.storage={tmp_path}/study.journal; "
        ):
            require_trials(storage, replace(named, study=study), sweep_id="mine", jobs=jobs)
    require_trials(storage, replace(named, study="another"), sweep_id="mine", jobs=[])


def test_a_study_of_other_choices_is_not_shared(tmp_path: Path) -> None:
    source = search(tmp_path, space=("model=mlp,cnn", "model.dropout=interval(0,0.5)"))
    next(source.jobs())
    storage = open_storage(str(tmp_path / "study.journal"))
    shared(storage, settings(tmp_path), ("model=mlp,cnn", "model.dropout=interval(0.1,0.9)"))
    with pytest.raises(RequestError, match="^sweep.study=s: its trials have other values of model"):
        shared(storage, settings(tmp_path), ("model=mlp,linear",))


def test_of_a_study_that_no_sweep_has_made_the_directions_are_compared(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.journal"))
    optuna.create_study(storage=storage, study_name="s", direction="minimize")
    shared(storage, settings(tmp_path, "sweep.objective=[val/loss]"))
    with pytest.raises(
        RequestError, match="its trials minimize, those of this sweep maximize val/"
    ):
        shared(storage, settings(tmp_path))


EPOCHS = 3


def listener(folder: Path, number: int, *words: str) -> Callable[[int, Any], None]:
    sweep = settings(folder, *words)
    job = replace(sweep.job, index=number, study="s", storage=sweep.storage)
    return pruning_listener(replace(sweep, job=job), EPOCHS)


@pytest.mark.parametrize(
    ("first", "told", "last"),
    [(2, "pruned after epoch 2", "PRUNED"), (EPOCHS, "", "COMPLETE")],  # its training is complete
)
def test_an_unpromising_trial_is_pruned_while_it_runs(
    first: int, told: str, last: str, tmp_path: Path
) -> None:
    words = (
        "sweep.pruner=median",
        f"+sweep.pruner_options={{n_startup_trials: 2, n_warmup_steps: {first}}}",
    )
    said = ""
    source = search(tmp_path, *words, "sweep.n_trials=3")
    for job in source.jobs():
        listen = listener(tmp_path, job.index, *words)
        level = 0.1 if job.index == 2 else 0.8
        try:
            for epoch in range(1, EPOCHS + 1):
                listen(epoch, {"val/accuracy": level, "train/loss": 0.0})
            source.tell(ended(job.index, job.params))
        except Pruned as pruned:
            said = str(pruned)
            source.tell(ended(job.index, job.params, PRUNED))
    assert said == told
    states = [trial.state.name for trial in source.study.trials]
    assert states == ["COMPLETE", "COMPLETE", last]


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_other_pruners_are_there_by_name(pruner: str, tmp_path: Path) -> None:
    source = search(tmp_path, f"sweep.pruner={pruner}")
    job = next(source.jobs())
    listener(tmp_path, job.index, f"sweep.pruner={pruner}")(1, {"val/accuracy": 0.5})
    assert source.study.trials[0].intermediate_values == {1: 0.5}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((*HYPERBAND, "+sweep.pruner_options.reduction_factor=1"), "`reduction_factor` is 1"),
        ((*HYPERBAND, "+sweep.pruner_options.min_resource=0"), "`min_resource` is 0"),
        ((*HYPERBAND, "+sweep.pruner_options.min_resource=auto"), "must be a whole number"),
        (
            (*HYPERBAND, "+sweep.pruner_options={min_resource: 4, max_resource: 3}"),
            "min_resource=4 must not be above max_resource=3",
        ),
        ((*HYPERBAND, "+sweep.pruner_options.warm=3"), "HyperbandPruner: .*'warm'"),
        (("+sweep.sampler_options={startup: 3}",), r"sampler_options: TPESampler: .*'startup'"),
        (
            ("sweep.pruner=median", "+sweep.pruner_options={warm: 3}"),
            r"pruner_options: MedianPruner",
        ),
        (
            ("sweep=network", "sweep.pruner=median"),
            r"MedianPruner: .*'min_resource'; .* left out with '~sweep.pruner_options.NAME'",
        ),
        (("sweep.pruner=median", "sweep.objective=[model/parameters]"), "each epoch has"),
        (
            ("sweep.pruner=median", "sweep.objective=[val/accuracy,model/parameters]"),
            "two objectives no trial can be pruned",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    words: tuple[str, ...], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=complaint):
        sensible(settings(tmp_path, *words))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sampler_options": {"seed": 5}}, "write sweep.seed=5"),
        ({"storage": None}, "sweep.study=s has no effect without sweep.storage"),
        ({"storage": "~/a.journal"}, r"write sweep.storage=\$HOME/a.journal"),
    ],
)
def test_what_a_new_search_is_refused_stays_that_of_an_earlier_one(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    begun = replace(settings(tmp_path), **changes)
    with pytest.raises(RequestError, match=complaint):
        sensible(begun)
    sensible(replace(begun, resume="latest"))


@pytest.mark.parametrize("file", ["tpe", "network", "network_mlp"])
def test_a_search_from_a_file_may_do_without_the_files_pruner(file: str, tmp_path: Path) -> None:
    sensible(settings(tmp_path, f"sweep={file}", "sweep.pruner=none"))


def test_gp_asks_for_pytorch_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="pip install torch"):
        sensible(settings(tmp_path, "sweep.sampler=gp"))


def test_an_address_with_a_password_reaches_jobs_by_their_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORAGE, "")  # so that it is as before afterwards
    monkeypatch.delenv(STORAGE)
    address = "postgresql+psycopg://me:canary@host/studies"
    secret = replace(settings(tmp_path, "sweep.pruner=median"), storage=address)
    searched = asked(*SPACE).searched
    journal = open_storage(str(tmp_path / "study.journal"))
    pass_on_secret_address(replace(secret, pruner="none"))
    assert STORAGE not in os.environ
    pass_on_secret_address(secret)
    assert os.environ[STORAGE] == address
    source = Search(secret, searched, sweep_id="s", storage=journal)
    assert source.job_settings == {"study": "s"}
    plain = Search(settings(tmp_path, "sweep.pruner=median"), searched, sweep_id="s")
    assert plain.job_settings == {"study": "s", "storage": str(tmp_path / "study.journal")}


def test_numbers_of_a_range_are_proposed_as_they_are_written(tmp_path: Path) -> None:
    space = ("model.dropout=range(0.1,0.5,0.1)", "optimizer.learning_rate=range(0.7,0.1,-0.2)")
    proposed = [job.params for job in islice(search(tmp_path, space=space).jobs(), 12)]
    assert {params["model.dropout"] for params in proposed} == {"0.1", "0.2", "0.3", "0.4"}
    assert {params["optimizer.learning_rate"] for params in proposed} == {"0.3", "0.5", "0.7"}


def test_an_optuna_that_another_package_has_put_back_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna, "__version__", "2.10.1")
    with pytest.raises(RequestError, match=r"Optuna 2.10.1 .*pip uninstall hydra-optuna-sweeper"):
        sensible(settings(tmp_path))
