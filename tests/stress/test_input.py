"""Configurations and files that are damaged at random: rows 33 and 34."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.api import compose
from pipeline.config.schema import Config
from pipeline.data.load import load_data
from pipeline.system.errors import PipelineError
from tests.commands import CONF, configured
from tests.data.test_mutations import mutated
from tests.pictures import class_folders, read
from tests.stress.matrix import matrix, stressed, tally

WORDS = (
    *("model=cnn", "optimizer.learning_rate=1e-3", "train.epochs=5", "model.dropout=0.2"),
    *("dataset=digits", "seed=3", "tracking.run_name=one", "evaluate.metrics=[accuracy,loss]"),
    *("train.keep=best", "preprocess.validation_size=0.1", "+tracking.tags.who=me"),
    *("augment=flip_crop", "schedule=cosine", "optimizer=sgd", "experiment=debug"),
)
HOSTILE = (
    *("", "=", "null", "None", "~", "[", "{a:1", "]", "'", '"', "\\", "é", "\x00", "\n", "a=b=c"),
    *("nan", "inf", "-1", "1e400", "9" * 400, "true", "[1,2", "${oc.env:HOME}", "${seed}", "${"),
    *(
        "../x",
        "/etc/passwd",
        "*",
        "interval(0,1)",
        "range(1,5)",
        "a,b",
        "!!python/object:os.system",
    ),
    *("{_target_: os.system}", "\ud800", "[[[[[[[[[[" * 20, "::", "&a", "*a", "? x", "|", "%", "@"),
)


def changed(words: list[str], draw: random.Random) -> list[str]:
    """Words of a command line with one to three changes."""
    made = list(words)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(made))
        key, _, value = made[at].partition("=")
        change = draw.randrange(6)
        if change == 0:
            made[at] = f"{key}={draw.choice(HOSTILE)}"
        elif change == 1:
            made[at] = f"{draw.choice(HOSTILE)}={value}"
        elif change == 2:
            text, place = made[at], draw.randrange(len(made[at]) + 1)
            made[at] = text[:place] + draw.choice("=.,[]{}()'\"\\ $~+:@\t0aZé") + text[place:]
        elif change == 3:
            text, place = made[at], draw.randrange(max(1, len(made[at])))
            made[at] = text[:place] + text[place + 1 :]
        elif change == 4:
            made[at] = f"{draw.choice('+~')}{made[at]}"
        else:
            made[at] = f"{key}.{draw.choice(('x', '_target_', '0', ''))}={value}"
    return made


def outcome(make: Callable[[], Config]) -> str | None:
    """None if a configuration is accepted, else what it is refused with, in a line or two."""
    try:
        made = make()
    except PipelineError as error:
        told = str(error)
        assert told.strip()
        assert len(told.splitlines()) <= 3, told
        return told
    assert isinstance(made, Config)
    return None


@pytest.mark.slow
@matrix(33)
def test_words_that_are_changed_at_random_are_a_configuration_or_refused_in_a_line() -> None:
    draw, count, refused = random.Random(0), stressed(800, 20), 0
    tally(count)
    for number in range(count):
        words = changed(draw.sample(WORDS, draw.randint(1, 3)), draw)
        try:
            refused += outcome(lambda words=words: compose(*words)) is not None
        except Exception as error:
            error.add_note(f"case {number}: {words}")
            raise
    assert refused > count / 4


@pytest.mark.slow
@matrix(33)
def test_files_that_are_changed_at_random_are_a_configuration_or_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw, count, refused = random.Random(1), stressed(200, 5), 0
    tally(count)
    files = sorted((CONF / "experiment").glob("*.yaml"))
    place = tmp_path / "conf" / "experiment" / "changed.yaml"
    place.parent.mkdir(parents=True)
    for number in range(count):
        original = draw.choice(files)
        place.write_bytes(mutated(original.read_bytes(), draw))
        try:
            refused += outcome(lambda: compose("experiment=changed")) is not None
        except Exception as error:
            error.add_note(f"case {number} of {original.name}:\n{place.read_bytes()!r}")
            raise
    assert refused


# --- bit flips ---


def flips(folder: Path, count: int, draw: random.Random) -> Iterator[Path]:
    """Flips one bit somewhere in the files of a folder, again and again, and yields the file."""
    for _ in range(count):
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        path = draw.choice([path for path in files if path.stat().st_size and path.suffix])
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.chmod(0o644)
        path.write_bytes(content)
        yield path


@matrix(34)
def test_no_flipped_bit_of_a_cached_array_reaches_a_model(tmp_path: Path) -> None:
    config, count = configured("dataset=digits", f"data_dir={tmp_path}"), stressed(70, 7)
    expected = load_data(config)
    images = expected.train.batch(0, len(expected.train)).copy()
    wrong = 0
    for _ in flips(tmp_path / "digits", count, random.Random(2)):
        found = load_data(config)
        same = np.array_equal(found.train.batch(0, len(found.train)), images)
        wrong += not (same and found.fingerprint == expected.fingerprint)
    tally(count, failed=wrong)
    assert wrong == 0


@matrix(34)
def test_no_flipped_bit_of_a_packed_array_reaches_a_model(tmp_path: Path) -> None:
    folder, count = class_folders(tmp_path / "photos", 4), stressed(30, 3)
    expected = read(folder, tmp_path / "data")
    images = expected.train.batch(0, len(expected.train)).copy()
    wrong = 0
    for _ in flips(tmp_path / "data" / "folder", count, random.Random(3)):
        found = read(folder, tmp_path / "data")
        same = np.array_equal(found.train.batch(0, len(found.train)), images)
        wrong += not (same and found.fingerprint == expected.fingerprint)
    tally(count, failed=wrong)
    assert wrong == 0


@pytest.mark.slow
def test_the_words_that_are_changed_are_a_configuration_as_they_are() -> None:
    for word in WORDS:
        assert configured(word)
    assert all(yaml.safe_load(path.read_text()) for path in (CONF / "experiment").glob("*.yaml"))
