"""The commands in README.md, docs/ and the heads of conf/'s files are ones that can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from pipeline.config.builders import KERAS_CLASSES
from tests.commands import CONF, ROOT, configured
from tests.config.test_mistakes import answer

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(CONF.rglob("*.yaml"))]
# Mistakes whose messages are shown, and lines of doctor and of the help that go on after a command.
OTHERS = {
    *("train.epocs=5", "model.dropout=1.5", "resume dataset=digits run_id=latest seed=4"),
    *("resume run_id=efb785851fc24625823e5bd40ebed539 resumes it", "[verb] [key=value ...]"),
    "doctor fix=true (marks them KILLED)",
}


def commands() -> Iterator[str]:
    """The words after `python -m pipeline`, without those that have a placeholder."""
    for page in PAGES:
        text = re.sub(r"\\\n#?", "", page.read_text(encoding="utf-8"))
        for line in re.findall(r"python -m pipeline ([^`\n]+)", text):
            command = line.partition(" #")[0].strip()
            if not re.search(r"[…<>]|install=", command):
                yield command


COMMANDS = sorted({*commands()} - OTHERS)


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 60
    assert {*commands()} >= OTHERS
    assert any("${dataset.seed}" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_no_mistake(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)
    code, said, _ = answer(words, monkeypatch, capfd)
    assert (code, said) == (0, "")
    if all("=" in word for word in words):  # a run
        configured(*words)


@pytest.mark.slow
def test_the_classes_of_keras_that_cannot_be_chosen_are_named() -> None:
    import keras

    footnote = re.search(r"^¹ .*?\n\n", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    assert footnote
    bases = {
        "optimizer": (keras.optimizers, keras.optimizers.Optimizer),
        "schedule": (keras.optimizers.schedules, keras.optimizers.schedules.LearningRateSchedule),
    }
    others = {
        name
        for group, (module, base) in bases.items()
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
        if name not in KERAS_CLASSES[group][1]
    }
    assert {*re.findall(r"`([A-Z]\w+)`", footnote[0])} == others
