"""Recorded runs side by side: what they differ in, and which differ in their seed alone. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.data.values import KEPT

SEED = "seed"
# Parameters that change what is shown of a model and never the model.
SHOWN_ONLY = ("evaluate.", "train.plots", "train.tensorboard")
# The builders behind a leaf's parameters; the other groups' parameters say all there is.
CHOICES = ("dataset", "augment", "model", "optimizer", "schedule")
# Where a run happened: shown if it differs, but two such runs may still differ in seed alone.
PLACE = ("hardware.host", "hardware.memory_gb")
COMMIT, DIRTY, PATCH = "mlflow.source.git.commit", "code.dirty", "code.patch_sha256"
FINGERPRINT = "data.fingerprint"
# What a person does not choose; it names a row only where nothing that was chosen differs.
ORIGIN = ("code", "data", "status", "version.", "hardware.")
LONGEST = 46  # characters of a row's name
SHORT = 8  # characters of a checksum or an id that a person reads


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as a search of the tracking store gives it: no artefact has been read.

    `started`: Unix time, ms; `metrics`: the last value of each, or what `of_kept_weights` makes of
    them; `sizes`: images by split.
    """

    id: str
    name: str
    status: str
    started: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    sizes: Mapping[str, int]
    artifact_uri: str

    @property
    def label(self) -> str:
        """What a person would call it: its name, else the beginning of its id."""
        return self.name or self.id[:SHORT]

    @property
    def kept_another_epoch(self) -> bool:
        """Whether `metrics` are the last epoch's, and the weights that the run kept are not.

        Runs that say how good the kept weights are do not need to be asked.
        """
        if any(name.startswith(KEPT) for name in self.metrics):
            return False
        best, epochs = self.metrics.get("train/best_epoch"), self.params.get("train.epochs", "")
        kept_best = self.params.get("train.keep") == "best" and best is not None
        return kept_best and epochs.isdecimal() and best != int(epochs)

    @cached_property
    def traits(self) -> dict[str, str]:
        """All that a result depends on, by name: settings, code, data, versions, hardware."""
        return self._settings | self._origin

    @property
    def _settings(self) -> dict[str, str]:
        chosen = {key: self.tags[key] for key in CHOICES if key in self.tags}
        return chosen | {
            # `mlflow run` records parameters of its own, and ours then under config.<name>.
            key.removeprefix("config."): value
            for key, value in self.params.items()
            if ("." in key or key == SEED) and not key.startswith(SHOWN_ONLY)
        }

    @property
    def _origin(self) -> dict[str, str]:
        tags = self.tags
        origin = {"code": code_state(tags), "data": tags.get(FINGERPRINT, "")[:SHORT]}
        origin |= {k: v for k, v in tags.items() if k.startswith(("version.", "hardware."))}
        return origin | {"status": self.status}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs that differ in nothing but their seed, the newest of each seed, by seed."""

    runs: tuple[RunRecord, ...]

    @cached_property
    def traits(self) -> dict[str, str]:
        """What the runs have in common, and `seed` and places of all of them."""
        common = dict(self.runs[0].traits)
        for key in (SEED, *PLACE):
            if key in common:
                common[key] = _listed(run.traits.get(key, "") for run in self.runs)
        return common


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Rows in the order of their first run, and how many runs another with their seed replaced."""

    rows: tuple[Row, ...]
    repeats: int


def of_kept_weights(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a run, those by epoch being those of the epoch whose weights it kept."""
    kept = {key.removeprefix(KEPT): metrics[key] for key in metrics if key.startswith(KEPT)}
    return {**metrics, **kept}


def code_state(tags: Mapping[str, str]) -> str:
    """The commit and, where the tree had more than it, the patch: `1ce00fe + patch 3f2a81c0`."""
    commit = tags.get(COMMIT, "")[:7] or "unknown"
    if tags.get(DIRTY) != "true":
        return commit
    patch = tags.get(PATCH, "")[:SHORT]
    return f"{commit} + patch {patch}" if patch else f"{commit} + uncommitted changes"


def fold(runs: Sequence[RunRecord]) -> Folded:
    """Puts runs that differ in their seed alone into one row.

    A setting and seed run twice counts once, by its newest run: repeats of the same random numbers
    would make the spread over seeds look smaller than it is.
    """
    alike: dict[frozenset[tuple[str, str]], dict[str, RunRecord]] = {}
    for run in runs:
        setting = {k: v for k, v in run.traits.items() if k != SEED and k not in PLACE}
        seeds = alike.setdefault(frozenset(setting.items()), {})
        seed = run.traits.get(SEED, "")
        if seed not in seeds or seeds[seed].started < run.started:
            seeds[seed] = run
    rows = tuple(
        Row(runs=tuple(sorted(seeds.values(), key=lambda run: _number(run.traits.get(SEED, "")))))
        for seeds in alike.values()
    )
    return Folded(rows=rows, repeats=len(runs) - sum(len(row.runs) for row in rows))


def differing(rows: Sequence[Row]) -> list[str]:
    """The traits that are not the same in all rows, in the order in which the runs have them."""
    traits = [row.traits for row in rows]
    names = dict.fromkeys(key for row in traits for key in row)
    return [name for name in names if len({row.get(name, "") for row in traits}) > 1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """By name its last part, `optimizer.learning_rate` → `learning_rate`, where that is enough."""
    ends = [name.rpartition(".")[2] for name in names]
    return {
        name: end if ends.count(end) == 1 else name for name, end in zip(names, ends, strict=True)
    }


def labels(rows: Sequence[Row], traits: Sequence[str]) -> list[str]:
    """What to call each row: its run's name; where one has several runs, what tells it apart.

    A name that two rows have is followed by the beginning of the run's id.
    """
    telling = [name for name in traits if name != SEED and name not in PLACE]
    telling = [name for name in telling if not name.startswith(ORIGIN)] or telling
    short = short_names(telling)
    several = any(len(row.runs) > 1 for row in rows)
    names = []
    for row in rows:
        words = [f"{short[name]}={row.traits[name]}" for name in telling if row.traits.get(name)]
        text = ", ".join(words) if several and words else row.runs[0].label
        names.append(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")
    seen = Counter(names)
    return [
        f"{name} {row.runs[0].id[:SHORT]}" if seen[name] > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def _listed(values: Iterable[str]) -> str:
    known = sorted(set(values), key=_number)
    if len(known) > 3:
        return f"{known[0]} … {known[-1]}"
    return ", ".join(known)


def _number(text: str) -> tuple[float, str]:
    """Sorts numbers by size and before other texts."""
    return (float(text), text) if text.isdecimal() else (float("inf"), text)
