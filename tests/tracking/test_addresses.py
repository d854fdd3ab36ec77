"""Experiments of any name keep their artefacts below `mlartifacts`, where they are found again."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import pytest

from pipeline.system.errors import RequestError
from pipeline.tracking.addresses import (
    DEFAULT_URI,
    artifact_location,
    folder_name,
    local_artifacts,
    require_address,
    require_artifacts_writable,
    sqlite_file,
    store_address,
    whole_address,
)
from pipeline.tracking.client import connect, experiment, experiment_name
from pipeline.tracking.lifecycle import record
from pipeline.tracking.runs import find_run, find_sweep, find_trained
from pipeline.verbs.compare.choice import named_runs
from tests.commands import QUICK, configured, inside, pipeline
from tests.stress.matrix import matrix
from tests.tracking.test_recording import predictions
from tests.verbs.doctor.test_command import without_tensorflow

NAMES = [
    *("/tmp/elsewhere/me@example.org", "../outside", "a/../../b", "..", ".", "a/b", "~", "C:\\x"),
    *("a%20b", "%2e%2e/x", "a#b", "a?b", "a:b", "file:///etc", " lead", "x" * 400, "李明", "a b"),
    *("{FOLDER}", "$HOME", "tab\there", "new\nline", "mlflow-artifacts:/x", "s3://bucket/x"),
]


@pytest.mark.parametrize("name", NAMES)
@matrix(43)
def test_an_experiments_folder_lies_in_mlartifacts_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = artifact_location(DEFAULT_URI, name)
    assert location is not None
    folder = Path(unquote(urlsplit(location).path))
    assert folder.parent == tmp_path / "mlartifacts"
    assert unquote(folder.as_posix()) == folder.as_posix()  # decoded twice it is the same
    folder.mkdir(parents=True)  # no name is too long


def test_names_that_differ_have_folders_that_differ_and_plain_ones_their_own() -> None:
    assert len({folder_name(name) for name in NAMES}) == len(NAMES)
    for name in ("fashion_mnist", "run 3", "v1.2-final", "李明"):
        assert folder_name(name) == name


@pytest.mark.parametrize("folder", ["my%20project", "100%25", "%E6%9D%8E", "a/b%2Fc/d"])
@matrix(43)
def test_a_folder_whose_name_mlflow_would_decode_twice_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    with pytest.raises(RequestError, match="rename the folder"):
        artifact_location(DEFAULT_URI, "digits")
    assert artifact_location("http://127.0.0.1:5000", "digits") is None  # a server has its own


@pytest.mark.parametrize("folder", ["100% cotton", "50%", "%zz", "a+b", "with space"])
def test_other_folders_are_not(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    assert artifact_location(DEFAULT_URI, "digits") is not None


@pytest.mark.slow
def test_the_command_line_refuses_such_a_folder_before_it_trains_and_doctor_tells(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "my%20project"
    folder.mkdir()
    refused = pipeline(*QUICK, cwd=folder)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "%20" in refused.stderr
    assert not (folder / "mlflow.db").exists()
    told = pipeline("doctor", "doctor.format=json", cwd=folder, before=without_tensorflow)
    assert "rename the folder" in told.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../outside", "a%20b", "/tmp/elsewhere/me@example.org", ".."])
@matrix(43)
def test_what_a_run_writes_is_found_again_and_nothing_lies_elsewhere(
    name: str, tmp_path: Path
) -> None:
    with inside(tmp_path / "here") as folder:
        config = configured(*QUICK, f"tracking.experiment='{name}'")
        with record(config, folder / "outputs") as recording:
            recording.save_text("note.txt", "hello")
            recording.save_predictions({"test": predictions(0, 1, 1)})
        run = find_run(recording.id, config)
        assert run.experiment == name
        assert run.text("note.txt") == "hello"
        assert len(run.predictions()["test"].labels) == 3
        [outputs] = folder.glob("mlartifacts/*/*/artifacts/note.txt")
        assert outputs.read_text() == "hello"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


# --- which experiment, which store ---


def test_the_store_is_the_settings_then_the_variables_then_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_address(None) == DEFAULT_URI
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert store_address(None) == "http://there"
    assert store_address("sqlite:///mine.db") == "sqlite:///mine.db"


MEANT = {
    "sqlite:x.db": "a file follows three slashes; write tracking.uri=sqlite:///x.db",
    "sqlite://x.db": "write tracking.uri=sqlite:///x.db",
    "sqlite:///": "a database in memory is gone when the run ends",
    "sqlite:///:memory:": "a database in memory is gone when the run ends",
    "runs/x.db": "it is a file; write tracking.uri=sqlite:///runs/x.db",
    "/data/x.sqlite": "write tracking.uri=sqlite:////data/x.sqlite",
    "postgres://ann:word@host/db": "write tracking.uri=postgresql://ann:***@host/db",
    "postgres+psycopg://host/db": "write tracking.uri=postgresql+psycopg://host/db",
    "http:/localhost:5000": "write tracking.uri=http://localhost:5000",
    "https:host/mlflow": "write tracking.uri=https://host/mlflow",
    "localhost:5000": "begins with http:// or https://; write tracking.uri=http://localhost:5000",
}


@pytest.mark.parametrize("address", MEANT)
def test_an_address_of_no_store_is_refused_with_the_one_that_is_meant(address: str) -> None:
    with pytest.raises(RequestError, match=re.escape(MEANT[address])) as refused:
        require_address(address)
    assert "word" not in str(refused.value)


@pytest.mark.parametrize(
    "written",
    [*("two w0rds", "w0#rd", "w0?rd", "w0/rd", "w0\\rd", "w0[rd", "w0]rd", "w0ärd", "w0%C3%A4rd")],
)
def test_a_password_that_no_address_can_have_is_refused_without_a_part_of_it(written: str) -> None:
    with pytest.raises(RequestError, match="set MLFLOW_TRACKING_USERNAME and") as refused:
        require_address(f"https://me:{written}@host:5000/mlflow")
    assert not {"w0", "rd"} & {*re.findall(r"\w+", str(refused.value))}


@pytest.mark.parametrize(
    "address",
    [
        *("sqlite:///mlflow.db", "sqlite:////data/a b.db", "http://localhost:5000", "https://h/x"),
        *("http://me:a%23b%40c:d@e%zz@h:5000", "http://h:5000/team@work", "http://[::1]:80/a@b"),
        *("postgresql+psycopg://u:p@h/db", "databricks", "databricks://profile", "mlruns"),
        *("file:///data/mlruns", "C:\\runs", "plugin-scheme://host:80/x"),
    ],
)
def test_another_address_is_left_to_mlflow(address: str) -> None:
    require_address(address)


@pytest.mark.slow
def test_mlflows_variables_say_which_experiment_and_the_setting_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inside(tmp_path) as folder:
        config = configured(*QUICK)
        assert experiment_name(config) == "synthetic"
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team-x")
        assert experiment_name(config) == "team-x"
        mine = configured(*QUICK, "tracking.experiment=mine")
        assert experiment_name(mine) == "mine"
        with record(config, folder / "one") as recording:
            pass
        assert find_run(recording.id, config).experiment == "team-x"
        assert find_run("latest", config).id == recording.id
        with pytest.raises(RequestError, match="the newest is in experiment team-x: track"):
            find_run("latest", mine)

        number = experiment(connect(None), "another")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        with pytest.raises(RequestError, match="unset one of them"):
            experiment_name(config)
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
        assert experiment_name(config) == "another"
        with record(config, folder / "two") as second:
            pass
        assert find_run("latest", config).id == second.id
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "4711")
        with pytest.raises(RequestError, match="MLFLOW_EXPERIMENT_ID=4711: there is no such exp"):
            experiment_name(config)


@pytest.mark.slow
def test_a_deleted_run_is_told_so_by_all_who_ask_with_what_brings_it_back(tmp_path: Path) -> None:
    with inside(tmp_path) as folder:
        config = configured(*QUICK)
        with record(config, folder / "one") as recording:
            pass
        connect(None).delete_run(recording.id)
        told = f"{recording.id} was deleted; `mlflow runs restore --run-id {recording.id}`"
        for ask in (find_run, find_trained):
            with pytest.raises(RequestError, match=f"run_id={told}"):
                ask(recording.id, config)
        with pytest.raises(RequestError, match=f"sweep.resume={told}"):
            find_sweep(recording.id, config)
        with pytest.raises(RequestError, match=f"runs={told}"):
            named_runs(config, [recording.id, "0" * 32])


@pytest.mark.slow
def test_the_registry_may_be_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.tracking.registry import open_registry

    with inside(tmp_path) as folder:
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{folder}/registry.db")
        open_registry(configured(*QUICK).tracking, "lamp").ensure()
        monkeypatch.delenv("MLFLOW_REGISTRY_URI")
        for name, models in (("registry", ["lamp"]), ("mlflow", [])):
            client = mlflow.MlflowClient(registry_uri=f"sqlite:///{folder}/{name}.db")
            assert [found.name for found in client.search_registered_models()] == models


def test_a_store_in_another_folder_has_its_artefacts_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = (tmp_path / "there" / "mlartifacts" / "digits").as_uri()
    file = tmp_path / "there" / "mlflow.db"
    for address in (
        *(f"sqlite:///{file}", "sqlite:///there/mlflow.db", f"sqlite+pysqlite:///{file}"),
        f"sqlite:///file:{file}?mode=rw&uri=true",
    ):
        assert artifact_location(address, "digits") == beside
    mine = (tmp_path / "mlartifacts" / "digits").as_uri()
    for address in (DEFAULT_URI, f"sqlite:///{tmp_path}/mlflow.db", "sqlite:///:memory:"):
        assert artifact_location(address, "digits") == mine


def test_the_file_and_the_whole_address_of_a_store_are_the_same_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("x.db", "./x.db", "a/../x.db", f"{tmp_path}/x.db", f"{tmp_path}/a/../x.db"):
        assert whole_address(f"sqlite:///{path}") == f"sqlite:///{tmp_path}/x.db"
        whole = f"sqlite+pysqlite:///file:{tmp_path}/x.db?mode=rw&uri=true"
        assert whole_address(f"sqlite:///file:{path}?mode=rw&uri=true") == whole
        assert sqlite_file(whole) == tmp_path / "x.db"
    assert sqlite_file("sqlite:///file:x%20y.db?uri=true") == Path("x y.db")
    for yes in ("1", "True", "yes", "on", "true&mode=rwc"):  # as SQLAlchemy understands it
        assert sqlite_file(f"sqlite:///file:x.db?timeout=9&uri={yes}") == Path("x.db")
    assert sqlite_file("sqlite:///file:x.db?uri=false") == Path("file:x.db")
    for address in ("sqlite:///:memory:", "http://localhost:5000", "mlruns"):
        assert (whole_address(address), sqlite_file(address)) == (address, None)


def test_where_artefacts_will_be_is_known_before_the_store_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, expected in (
        ((), tmp_path / "mlartifacts" / "a b"),
        ((f"tracking.uri=sqlite:///{tmp_path}/x/y.db",), tmp_path / "x" / "mlartifacts" / "a b"),
        (("tracking.artifact_root=kept",), tmp_path / "kept" / "a b"),
        (("tracking.artifact_root=file:kept",), tmp_path / "kept" / "a b"),
        (("tracking.artifact_root=s3://bucket/x",), None),
        (("tracking.uri=http://host:5000",), None),
        (("tracking.uri=postgresql://host/db",), None),
        (("tracking.offline=true",), None),
    ):
        assert local_artifacts(configured(*words).tracking, "a b") == expected


def test_only_a_folder_that_is_known_before_the_store_is_asked_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlartifacts").write_text("a file where the folder would be")
    named, number, run = (
        f"MLFLOW_{name}" for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID")
    )
    typed = "tracking.experiment=typed"
    for variables, words, is_checked in (
        ({named: "team"}, (), True),
        ({number: "", run: ""}, (), True),
        ({number: "3"}, (), False),  # that experiment may keep its artefacts anywhere
        ({number: "3", named: "team"}, (), True),
        ({number: "3"}, (typed,), True),
        ({run: "0123456789abcdef0123456789abcdef"}, (typed,), False),
    ):
        with monkeypatch.context() as changed:
            for name, value in variables.items():
                changed.setenv(name, value)
            refused = pytest.raises(RequestError, match="mlartifacts: cannot be written")
            with refused if is_checked else nullcontext():
                require_artifacts_writable(configured(*words))
    (tmp_path / "mlartifacts").unlink()
    require_artifacts_writable(configured())


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "mysql+pymysql", "mssql"])
def test_a_database_asks_where_artefacts_are_to_be_kept(scheme: str) -> None:
    address = f"{scheme}://me:hunter2@db.example/mlflow"
    with pytest.raises(RequestError) as refused:
        artifact_location(address, "digits")
    for part in ("tracking.artifact_root=", "mlflow server --backend-store-uri", "***@db.example"):
        assert part in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert artifact_location(address, "a b", "s3://bucket/x/") == "s3://bucket/x/a%20b"
    assert artifact_location(address, "digits", "/shared") == "file:///shared/digits"


def test_an_experiment_whose_artefacts_are_elsewhere_than_asked_or_not_here_is_refused(
    tmp_path: Path,
) -> None:
    with inside(tmp_path / "work"):
        client = connect(None)
        root = str(tmp_path / "kept")
        made = experiment(client, "digits", root)
        assert client.get_experiment(made).artifact_location == (tmp_path / "kept/digits").as_uri()
        with pytest.raises(RequestError, match="not on this machine"):
            experiment(client, "digits")  # nobody has mounted it here
        (tmp_path / "kept").mkdir()
        assert experiment(client, "digits") == experiment(client, "digits", root) == made
        with pytest.raises(RequestError, match="has its artefacts in"):
            experiment(client, "digits", str(tmp_path / "another"))
        named = f"tracking.artifact_root={root}"
        with record(configured("dataset=digits", "model=linear", named), tmp_path / "run"):
            pass
        assert [path.name for path in (tmp_path / "kept" / "digits").iterdir()]
        assert not (tmp_path / "work" / "mlartifacts").exists()
