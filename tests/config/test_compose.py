from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline.config import compose as composing
from pipeline.config.compose import Composer
from pipeline.config.schema import register
from pipeline.verbs import requests
from tests.commands import CONF, inside

pytestmark = pytest.mark.slow

MASTER = ["optimizer.learning_rate=0.1", "hydra.sweep.dir=/master", "seed=1,2"]
WORDS = ["optimizer.learning_rate=0.2", "seed=2", "tracking.run_name='a b'", "hydra.sweep.dir=/x"]


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    register(requests())
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra.config_loader


def master(loader: ConfigLoader) -> DictConfig:
    return loader.load_configuration("config", MASTER, run_mode=RunMode.MULTIRUN)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["model=cnn"],
        ["optimizer=sgd", "optimizer.momentum=0.5", "hydra/launcher=basic"],
        ["+model.another=3", "seed=4"],
        ["++seed=5", "~schedule"],
        ["train.epochs=3", "model=cnn", "train.epochs=4"],
    ],
)
def test_a_jobs_configuration_is_that_of_hydra(loader: ConfigLoader, more: list[str]) -> None:
    begun = master(loader)
    composer = Composer(loader, begun)
    composer.compose([*WORDS, *more, "seed=9"])  # of which nothing may be left
    ours, theirs = (
        OmegaConf.to_container(config)
        for config in (
            composer.compose([*WORDS, *more]),
            loader.load_sweep_config(begun, [*WORDS, *more]),
        )
    )
    assert ours == theirs


def test_files_are_read_for_the_first_job_of_a_kind_only(
    loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    composer = Composer(loader, master(loader))
    composer.compose(["seed=1", "model=cnn"])
    composer.compose(["seed=1", "model=linear"])
    monkeypatch.setattr(type(loader), "load_sweep_config", None)
    assert composer.compose(["seed=2", "model=cnn", "train.epochs=7"]).train.epochs == 7
    with pytest.raises(TypeError):
        composer.compose(["seed=2", "model=mlp"])


@pytest.mark.parametrize("word", ["sed=1", "model.nothing=1", "model=none", "seed@here=1"])
def test_what_hydra_refuses_is_refused_in_its_words(loader: ConfigLoader, word: str) -> None:
    begun = master(loader)
    messages = []
    for compose in (
        Composer(loader, begun).compose,
        lambda words: loader.load_sweep_config(begun, list(words)),
    ):
        with pytest.raises(HydraException) as refused:
            compose([*WORDS, word])
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


def test_defaults_of_a_project_may_set_keys_of_any_verb(tmp_path: Path) -> None:
    files = {
        "project/default.yaml": "# @package _global_\ndefaults: [override /serve: public]\n"
        "promote: {force: true}\n",
        "serve/public.yaml": "host: 0.0.0.0\nport: 80\n",
    }
    for name, text in files.items():
        place = tmp_path / "conf" / name
        place.parent.mkdir(parents=True)
        place.write_text(text)
    with inside(tmp_path):
        for verb in ("run", "promote", "serve"):
            register(requests(), of={verb})
            whole = composing.compose([])
            assert (whole.serve.port, whole.promote.force) == (80, True)
            assert OmegaConf.is_missing(whole.promote, "max_ece") == (verb != "promote")


def test_a_log_is_in_utf8_whatever_the_locale() -> None:
    register(requests(), of=())
    assert composing.compose([]).hydra.job_logging.handlers.file.encoding == "utf-8"
