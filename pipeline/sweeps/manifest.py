"""The manifest of a sweep, which tells whether a resumed sweep is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pipeline.config.builders import GROUPS, first_name, value_before
from pipeline.config.flat import as_param, config_sha256, shown_params
from pipeline.config.schema import ADDED, Config
from pipeline.sweeps.jobs import Job, Multirun
from pipeline.sweeps.outcomes import objectives
from pipeline.system.errors import RequestError
from pipeline.system.files import replace_text
from pipeline.system.secrets import has_hidden, hide_param, hide_value, may_stand_for

MANIFEST_FILE = "manifest.json"
MAY_CHANGE = ("n_trials",)  # a resumed search may get more trials
# Settings of conf/sweep/ that define a sweep; the others only control how it is run.
_SETTINGS = ("objective", "direction", "sampler", "sampler_options", "pruner", "pruner_options")
_PLACE = ("storage", "study")  # of a search; earlier versions did not record it


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The search space and the configuration; for a grid, each job with its checksum."""

    searched: Mapping[str, str]
    settings: Mapping[str, Any]
    base: Mapping[str, str]
    jobs: Sequence[Mapping[str, Any]] = ()

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`."""
        replace_text(folder / MANIFEST_FILE, self.text)

    @property
    def text(self) -> str:
        """The manifest as JSON."""
        shown = {
            "searched": _shown(self.searched),
            "settings": hide_value("", self.settings),
            "base": _shown(self.base),
            "jobs": [{**job, "params": _shown(job["params"])} for job in self.jobs],
        }
        return json.dumps(shown, indent=2) + "\n"

    def require_same(self, folder: Path) -> None:
        """Compares with the manifest saved in `folder`.

        Raises:
            RequestError: they differ; the message names each difference.
        """
        try:
            then = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(
                f"sweep.resume: {folder / MANIFEST_FILE} cannot be read: {error}"
            ) from error
        if differences := list(_differences(then, json.loads(self.text))):
            raise RequestError(
                "sweep.resume: this is not the same sweep as the one to resume:\n"
                + "\n".join(differences)
            )


def jobs_of(folder: Path, multirun: Multirun) -> list[Job]:
    """The jobs of the grid saved in `folder`, if the search space is the same, else none.

    A grid with `shuffle(…)` would otherwise have another order each time.
    """
    try:
        then = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        if then["searched"] != _shown(_searched(multirun)) or has_hidden(json.dumps(then["jobs"])):
            return []
        return [Job(index=job["index"], params=job["params"]) for job in then["jobs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # `require_same` refuses this later


def manifest(multirun: Multirun, jobs: Sequence[tuple[Job, Config]], *, adaptive: bool) -> Manifest:
    """The manifest of a grid, whose `jobs` are known in advance, or of a search."""
    settings = multirun.config.sweep
    sweep = asdict(settings) | {"direction": [one.direction for one in objectives(settings)]}
    names = (*_SETTINGS, *_PLACE, "seed", *MAY_CHANGE) if adaptive else _SETTINGS[:2]
    searched = _searched(multirun)
    base = {**shown_params(multirun.config), **_builders(multirun.config)}
    base |= {key.lstrip("+"): text for key, text in multirun.unplaced.items()}
    return Manifest(
        searched=searched,
        settings={"adaptive": adaptive} | {name: sweep[name] for name in names},
        base={key: value for key, value in base.items() if key not in searched},
        jobs=[
            {"index": job.index, "params": job.params, "config_sha256": config_sha256(config)}
            for job, config in jobs
        ],
    )


def _builders(config: Config) -> dict[str, str]:
    """The builder of each group, by its first name as in checksums."""
    leaves = {group: getattr(config, group) for group in GROUPS}
    return {
        f"{group}._target_": as_param(first_name(leaf["_target_"]))
        for group, leaf in leaves.items()
    }


def _searched(multirun: Multirun) -> dict[str, str]:
    return {o.get_key_element(): str(o.input_line).partition("=")[2] for o in multirun.searched}


def _shown(params: Mapping[str, str]) -> dict[str, str]:
    """Parameters, as texts, without secrets."""
    return {key: hide_param(key, text) for key, text in params.items()}


def _unsaid(key: str) -> str:
    """The value of a missing key, which earlier versions did not record because it was fixed."""
    if key in ADDED:
        return as_param(ADDED[key])
    try:
        return as_param(value_before(key))
    except KeyError:
        return "nothing"


def _value(text: str) -> Any:
    """What a text stands for: earlier versions kept some as typed, `1e-2` or `[8,4]`."""
    try:
        return OverridesParser.create().parse_overrides([f"value={text}"])[0].value()
    except HydraException:
        return text


def _is_same(before: Any, after: Any) -> bool:
    """Whether a recorded value may be that of today: what either hides is unknown."""
    if before == after:
        return True
    then, now = json.dumps(before), json.dumps(after)
    return may_stand_for(then, now) or may_stand_for(now, then)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    place = {name: now["settings"][name] for name in _PLACE if name in now["settings"]}
    builders = {key: value for key, value in now["base"].items() if key.endswith("._target_")}
    # Earlier versions recorded neither, and kept the plus of a key.
    base = builders | {key.lstrip("+"): text for key, text in then["base"].items()}
    then = {**then, "settings": place | then["settings"], "base": base}
    for part in ("searched", "settings", "base"):
        for key in then[part] | now[part]:
            before, after = (made[part].get(key, _unsaid(key)) for made in (then, now))
            same = _is_same(before, after) or (part == "base" and _value(before) == _value(after))
            if not same and key not in MAY_CHANGE:
                yield f"  {key} was {before}, is {after}"
    changed = [
        job["index"]
        for job, other in zip(now["jobs"], then["jobs"], strict=False)
        if not _is_same(other, job)
    ]
    if changed or len(now["jobs"]) != len(then["jobs"]):
        yield f"  {len(then['jobs'])} jobs then, {len(now['jobs'])} now; different: {changed[:5]}"
