"""Runs recorded in PostgreSQL: rows 2 and 27."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from mlflow import MlflowClient

from pipeline.run import run
from tests.commands import QUICK, configured, free_port, inside
from tests.stress.matrix import matrix, only_stressed, stressed, tally
from tests.stress.stores import SIX, assert_recorded, at_once, missing_points
from tests.stress.test_load import PROCESSES

pytestmark = [pytest.mark.slow, only_stressed]

USER = "postgres"  # PostgreSQL refuses to run as root
EPOCHS = 30


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A PostgreSQL server of our own."""

    tools: Path
    data: Path
    port: int

    @property
    def uri(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{USER}"

    def control(self, *words: str) -> None:
        """`pg_ctl` with these words, waited for."""
        options = f"-p {self.port} -k {self.data} -c listen_addresses=127.0.0.1"
        command = [self.tools / "pg_ctl", "-D", self.data, "-w", "-o", options, *words]
        log = ["-l", str(self.data / "log")] if words[0] != "stop" else []
        as_postgres([*map(str, command), *log])


def as_postgres(command: list[str]) -> None:
    user = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
        timeout=60,
        **user,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not tools:
        pytest.skip("not tried: PostgreSQL is not installed (apt-get install postgresql)")
    if find_spec("psycopg") is None:
        pytest.skip("not tried: pip install 'psycopg[binary]', PostgreSQL's driver")
    with TemporaryDirectory(prefix="postgres-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
        made = Cluster(tools=tools[-1].parent, data=Path(folder) / "data", port=free_port())
        trust = ["-A", "trust", "-U", USER, "--no-sync"]
        as_postgres([str(tools[-1]), "-D", str(made.data), *trust])
        made.control("start")
        try:
            yield made
        finally:
            made.control("stop", "-m", "immediate")


@matrix(2)
def test_eight_processes_record_32_runs_in_postgresql(cluster: Cluster, tmp_path: Path) -> None:
    rounds, epochs = stressed(4, 1), 20
    client = MlflowClient(cluster.uri)
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        ids = at_once(PROCESSES, folder, cluster.uri, epochs=epochs)
        lost = [
            one
            for one in ids
            if missing_points(client, one, epochs, SIX)
            or client.get_run(one).info.status != "FINISHED"
        ]
        tally(len(ids), failed=len(lost))
        assert (lost, len(set(ids))) == ([], PROCESSES)


@matrix(27)
@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_of_postgresql_loses_nothing_of_a_run(
    how: str, cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def watch(epoch: int, _: dict[str, float]) -> None:
        if epoch in (5, 15):
            cluster.control("restart", "-m", how)

    words = (f"tracking.uri={cluster.uri}", f"tracking.artifact_root={tmp_path}/files")
    rounds = stressed(3, 1)
    tally(rounds)
    with inside(tmp_path):
        for number in range(rounds):
            folder = tmp_path / f"run{number}"
            config = configured(
                *QUICK, f"train.epochs={EPOCHS}", *words, f"tracking.experiment={how}"
            )
            made = run(config, folder, watch)
            assert_recorded(MlflowClient(cluster.uri), made.run_id, folder, EPOCHS)
    assert "Traceback" not in capfd.readouterr().err
