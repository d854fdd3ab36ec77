from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import keras  # noqa: F401  (before mlflow.tensorflow asks for it half way through its own import)
import pytest

from pipeline.config.schema import Config
from pipeline.config.sweep import JobSettings
from pipeline.system.errors import PipelineError, RequestError
from pipeline.tracking import lifecycle
from pipeline.tracking.client import connect
from pipeline.tracking.lifecycle import record, send_waiting
from pipeline.verbs.doctor.leftovers import unsent
from pipeline.verbs.sync import Sync, Unsent, show, sync
from tests.commands import configured, inside
from tests.stores import Switch, wait_briefly

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    with inside(tmp_path):
        yield configured("dataset=digits", "model=linear", "tracking.offline=true")


def test_two_syncs_do_not_work_on_one_journal(config: Config, tmp_path: Path) -> None:
    with record(config, tmp_path / "run"):
        [result] = sync(config, Sync(folder=str(tmp_path / "run")), tmp_path)  # still recorded
        assert isinstance(result, Unsent)
        assert "another process is recording or sending it" in result.reason


def test_doctor_tells_of_what_is_not_sent(config: Config, tmp_path: Path) -> None:
    with record(config, tmp_path / "outputs" / "today" / "now"):
        assert list(unsent()) == []  # it is at work
    [found] = unsent()
    assert (found.state, found.mend) == ("warning", "python -m pipeline sync")
    assert "1 run has records that no store has yet: outputs/today/now" in found.says
    assert len(sync(config, Sync(folder=None), tmp_path)) == 1
    assert list(unsent()) == []


def test_a_job_is_sent_while_neither_it_nor_its_sweep_is_at_work_wherever_that_is(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = dict.fromkeys(("name", "experiment", "command", "completes", "study", "storage"))
    job = JobSettings(index=0, parent="sweep", **nothing)  # type: ignore[arg-type]
    folder, opened = Path("multirun/mine/0"), '{"kind": "opened", "id": "x", "name": "x"}\n'
    with record(config, folder, job=job):
        pass
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write(opened)
    locked: list[Path] = []

    def at_work_in(folder: Path) -> AbstractContextManager[None]:
        locked.append(folder)
        return nullcontext()

    monkeypatch.setattr(lifecycle, "at_work_in", at_work_in)
    monkeypatch.setattr(lifecycle, "send_journal", lambda client, folder: folder)
    assert send_waiting(connect(None)) == ([folder], [])
    assert locked == [folder, folder.parent]


def test_a_run_whose_store_an_earlier_version_named_without_its_user_is_sent_there(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = '{"kind": "opened", "store": "postgresql://***@db/x"}\n'
    for name in ("a", "b"):
        with record(config, Path("outputs/today") / name):
            pass
    with Path("outputs/today/a/journal.jsonl").open("a") as journal:
        journal.write(opened)
    monkeypatch.setattr(lifecycle, "send_journal", lambda client, folder: folder)
    a, b = Path("outputs/today/a"), Path("outputs/today/b")
    for store, sent in (("me@db/x", [a]), ("me:password@db/x", [a]), ("me@other/x", [])):
        client = SimpleNamespace(tracking_uri=f"postgresql://{store}")
        assert send_waiting(client) == (sent, [b] if sent else [a, b])  # type: ignore[arg-type]


def test_a_run_whose_records_are_damaged_keeps_no_other_from_being_sent(
    config: Config, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        with record(config, tmp_path / "outputs" / "today" / name):
            pass
    (tmp_path / "outputs/today/a/journal.jsonl").write_text('{"kind": "opening"}\n')
    damaged, sent = sync(config, Sync(folder=None), tmp_path)
    assert isinstance(damaged, Unsent)
    assert str(sent).startswith("outputs/today/b: run_id=")
    assert send_waiting(connect(None)) == ([], [Path("outputs/today/a")])


def test_an_unsent_run_of_another_user_stops_neither_a_new_run_nor_doctor(
    config: Config, tmp_path: Path
) -> None:
    folder = Path("outputs/today/now")
    with record(config, tmp_path / folder):
        pass
    (folder / ".journal.lock").unlink(missing_ok=True)
    (folder / ".journal.lock").mkdir()  # root may write to any file, but not to this
    assert send_waiting(connect(None)) == ([], [folder])

    def refused(folder: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.tracking.lifecycle.is_open", refused)
        assert send_waiting(connect(None)) == ([], [])  # theirs to send
    [found] = unsent()
    assert found.mend == "let their owner send them"
    assert "1 run has records that no store has yet in folders that you cannot write" in found.says
    [left] = sync(config, Sync(folder=None), tmp_path)
    assert isinstance(left, Unsent)


def test_a_run_goes_to_the_store_in_which_it_was_opened_unless_another_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    wait_briefly(monkeypatch)
    switch = Switch(monkeypatch)
    opened = configured("dataset=digits", "model=linear", f"tracking.uri={other}")
    with record(opened, tmp_path / "outputs" / "today" / "opened") as recording:
        switch.is_away = True
    switch.is_away = False
    with record(config, tmp_path / "outputs" / "today" / "offline"):
        pass
    default = configured("dataset=digits", "model=linear")
    sent = {str(one.folder): one for one in sync(default, Sync(folder=None), tmp_path)}
    found = sent["outputs/today/opened"], sent["outputs/today/offline"]
    assert connect(other).get_run(found[0].run_id).info.status == "FINISHED"  # type: ignore[union-attr]
    assert found[0].run_id == recording.id  # type: ignore[union-attr]
    assert connect(None).get_run(found[1].run_id).info.status == "FINISHED"  # type: ignore[union-attr]


def test_a_run_of_another_folder_s_store_is_sent_from_there_and_no_store_is_made_here(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_briefly(monkeypatch)
    switch = Switch(monkeypatch)
    default = configured("dataset=digits", "model=linear")
    run = tmp_path / "outputs" / "today" / "now"
    opened = configured("dataset=digits", "model=linear", "tracking.uri=sqlite:///mlflow.db")
    with record(opened, run) as recording:
        switch.is_away = True
    switch.is_away = False
    (elsewhere := tmp_path / "elsewhere").mkdir()
    with inside(elsewhere), pytest.raises(RequestError) as refused:
        sync(default, Sync(folder=str(run)), tmp_path)
    assert [*elsewhere.iterdir()] == []
    assert str(refused.value) == (
        f"tracking store sqlite:///mlflow.db: there is no {elsewhere}/mlflow.db; call sync in "
        f"{tmp_path}, or name the store with tracking.uri=…"
    )
    (tmp_path / "mlflow.db").rename(tmp_path / "moved.db")
    with inside(elsewhere):
        with pytest.raises(
            RequestError, match="call sync in the folder in which the run began, or"
        ):
            sync(default, Sync(folder=str(run)), tmp_path)
        connect(None)  # another store of that name
        [unsent] = sync(default, Sync(folder=str(run)), tmp_path)
        assert str(unsent).endswith(
            f"the run {recording.id} was recorded at sqlite:///mlflow.db and is not in this store; "
            "call sync in the folder in which the run began, or name that one with tracking.uri=…"
        )


def test_a_store_that_cannot_be_used_keeps_no_other_from_getting_its_runs(
    config: Config, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        with record(config, folder := tmp_path / "outputs" / "today" / name):
            pass
    lost = f"sqlite:///{tmp_path}/missing/mlflow.db"
    path = folder / "journal.jsonl"
    opened = '{"kind": "opened", "id": "x", "name": "", "artifacts": ""}\n'
    path.write_text(path.read_text().replace(f"sqlite:///{tmp_path}/mlflow.db", lost) + opened)
    a, b = sync(configured("dataset=digits"), Sync(folder=None), tmp_path)
    assert str(a).startswith("outputs/today/a: run_id=")
    told = f"there is no {tmp_path}/missing/mlflow.db; name the store with tracking.uri=…"
    assert f"not sent: tracking store {lost}: {told}" in str(b)


def test_without_a_folder_nothing_is_sent_where_there_is_nothing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sync(config, Sync(folder=None), tmp_path) == []
    show([], Sync(folder=None))
    assert capsys.readouterr().out == "nothing to send\n"
    with pytest.raises(RequestError, match=r"^sync.folder=none: there is nothing to send$"):
        sync(config, Sync(folder="none"), tmp_path)


def test_what_could_not_be_sent_is_told_run_by_run_and_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unsent = [Unsent(folder=Path("outputs/a"), reason="the store is away")]
    with pytest.raises(PipelineError, match=r"^1 of 1 runs could not be sent; try again later$"):
        show(unsent, Sync(folder=None))
    assert capsys.readouterr().out == "outputs/a: not sent: the store is away\n"
