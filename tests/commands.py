"""The command line as a child process, and a configuration as the command line would compose it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pipeline.config import Config, register, validate

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
QUICK = ("dataset=synthetic", "model=linear", "train.epochs=1")


def environment(**changes: str) -> dict[str, str]:
    """This process' environment without what would lead a run elsewhere."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "HYDRA_", "PYTHONDONTWRITE"))
    }
    return kept | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"} | changes


def pipeline(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline …` in the folder `cwd`, waited for."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=180,
    )


def composed(*overrides: str) -> DictConfig:
    """What Hydra hands to the pipeline for these overrides."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        whole = compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(whole)
    return OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])


def configured(*overrides: str) -> Config:
    """The checked configuration for these overrides."""
    return validate(composed(*overrides))


def results(stdout: str) -> dict[str, str]:
    """What the last line of `run` says."""
    return dict(word.split("=", 1) for word in stdout.splitlines()[-1].split(" "))


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """That folder as the current one, and the store in it as the default.

    By its whole path: MLflow keeps one connection an address for as long as the process lives.
    """
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    try:
        yield folder
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        os.chdir(before)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, *options: str) -> Iterator[str]:
    """The address of an MLflow server over `mlflow.db` in `folder`, while the block runs."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", "sqlite:///mlflow.db", *options]
    env = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        _await(f"{address}/health", server)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.ConnectionError:
            assert server.poll() is None, "the server ended"
        time.sleep(0.1)
    raise AssertionError("the server did not answer within a minute")
