"""The verb `promote`: judges a run by the gates and makes its model the champion if it passes."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.flat import config_sha256
from pipeline.config.schema import Config
from pipeline.system.errors import PipelineError
from pipeline.system.processes import user
from pipeline.system.terminal import native_messages_to, standard_output
from pipeline.tracking.client import STORE_ERRORS
from pipeline.tracking.registry import Registry, open_registry
from pipeline.tracking.runs import by_id, find_trained
from pipeline.tracking.values import (
    CHALLENGER,
    CHALLENGER_STATE,
    CHAMPION,
    FINGERPRINT,
    OF_COMMIT,
    OF_CONFIG,
    OF_RUN,
    STATE,
    Present,
    RecordedRun,
    Version,
)
from pipeline.verbs.promote import PROMOTE, Promote
from pipeline.verbs.promote.describe import (
    SHOWN_ATTEMPTS,
    note_of_model,
    note_of_version,
    whole_ledger,
)
from pipeline.verbs.promote.gates import LOADS, Gate, failed, judge
from pipeline.verbs.promote.ledger import (
    FORCED,
    PROMOTED,
    REFUSED,
    UNCHANGED,
    Attempt,
    artifact,
    attempts_in,
    complaint,
    gates_table,
    line_of_champions,
    new_key,
    to_tag,
    to_text,
)
from pipeline.verbs.promote.switch import Change, replaced_by, settle, switch

if TYPE_CHECKING:
    from pipeline.verbs.rollback import Rollback

METRIC = "val/accuracy"  # selects the best run; the test split is reserved for judging it
_SHOWN = ("val/accuracy", "test/accuracy")


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The outcome of an attempt to change the champion, and the resulting champion.

    `decision` is the ledger's term, or `unchanged`; `says` is a remark. `version`, of run `run_id`,
    is the champion now, None if there is none; `previous` is the version that a rollback goes to.
    """

    decision: str
    gates: Sequence[Gate] = ()
    says: str = ""
    version: int | None
    previous: int | None
    run_id: str | None

    @property
    def refused(self) -> bool:
        """Whether the gates refused the run."""
        return self.decision == REFUSED

    def __str__(self) -> str:
        """The line that scripts read: the champion now, and the one it replaced."""
        return (
            f"version={self.version} alias={CHAMPION} previous={self.previous} run_id={self.run_id}"
        )


def promote(config: Config, request: Promote, folder: Path) -> Decision:
    """Makes a run's model the champion of its data set if it passes the gates or is forced.

    Raises:
        RequestError: no run is named, there is no such run, or it has no model.
        PipelineError: another promotion happened in the meantime.
    """
    candidate = find_trained(PROMOTE.run_id(config), config, metric=METRIC)
    registry = open_registry(config.tracking, candidate.config.choices.dataset)
    settle(registry)
    registered = registry.present()
    champion = registered.aliases.get(CHAMPION)
    present = registry.find(champion) if champion else None
    if present and present.run_id == candidate.id:
        says = f"run {candidate.id} is the champion already; nothing was changed"
        return concluded(registry, UNCHANGED, says=says)
    # Imported only now: a wrong request needs no TensorFlow.
    with native_messages_to(folder / "tensorflow.log"):
        from pipeline.verbs.promote.evidence import gather
    former = _former(registry, registered, candidate.fingerprint)
    gates = judge(gather(candidate, config, present, former), request)
    attempt = _attempt(candidate, request, gates, champion)
    registry.attach(candidate.id, artifact(attempt.key), to_text(attempt))
    if attempt.decision == REFUSED:
        says = _refuse(registry, candidate, attempt, challenger=request.challenger)
        return concluded(registry, REFUSED, gates, says)
    switch(
        registry,
        Change(
            attempt=attempt,
            source=str(candidate.model_uri),
            run_id=candidate.id,
            tags=lineage(candidate),
            description=note_of_version(candidate, attempt),
        ),
    )
    says = f"run {candidate.id} is now the champion of {registry.name}"
    return concluded(registry, attempt.decision, gates, says)


def lineage(run: RecordedRun) -> dict[str, str]:
    """The tags of a version that scripts search for; its description has the rest."""
    metrics = run.metrics
    return ({FINGERPRINT: run.fingerprint} if run.fingerprint else {}) | {
        OF_RUN: run.id,
        OF_CONFIG: config_sha256(run.config),
        OF_COMMIT: run.commit or "unknown",
        **{key.replace("/", "."): f"{metrics[key]:.6g}" for key in _SHOWN if key in metrics},
    }


def concluded(
    registry: Registry, decision: str, gates: Sequence[Gate] = (), says: str = ""
) -> Decision:
    """The decision, with the current state of the registry."""
    present = registry.present()
    version = present.aliases.get(CHAMPION)
    champion = registry.find(version) if version else None
    if decision != UNCHANGED:
        _describe(registry, present, champion)
    return Decision(
        decision=decision,
        gates=gates,
        says=says,
        version=version,
        previous=replaced_by(registry, champion) if champion else None,
        run_id=champion.run_id if champion else None,
    )


def _describe(registry: Registry, present: Present, champion: Version | None) -> None:
    """Describes the registered model. The decision is made already: an error is only logged."""
    try:
        run = by_id(registry.client, champion.run_id) if champion else None
        attempts = whole_ledger(registry, present, newest=SHOWN_ATTEMPTS)
        registry.describe(note_of_model(registry, present, attempts, run))
    except (*STORE_ERRORS, PipelineError) as error:
        log.warning("%s could not be described: %s", registry.name, error)


def _former(registry: Registry, registered: Present, fingerprint: str | None) -> list[Version]:
    """The champion's predecessors that still exist and were trained on the same data.

    If there is no champion, as when its version was deleted, those are all of the last line.
    """
    line = line_of_champions(attempts_in(registered.tags, registry.name))
    champion = registered.aliases.get(CHAMPION)
    before = line[: line.index(champion)] if champion in line else line
    found = (registry.find(number) for number in before)
    return [one for one in found if one and one.fingerprint == fingerprint]


def show(decision: Decision, request: Promote | Rollback) -> None:
    """Prints the gates, remarks, and the line that scripts read.

    Raises:
        PipelineError: the gates refused the run.
    """
    if decision.gates:
        standard_output().print(gates_table(decision.gates))
    if decision.refused:
        raise PipelineError(decision.says)
    if decision.says:
        standard_output().print(decision.says)
    print(decision, flush=True)


def _attempt(
    candidate: RecordedRun, request: Promote, gates: list[Gate], champion: int | None
) -> Attempt:
    """The attempt for the ledger, from the gates and the request."""
    missed = failed(gates)
    # A model that does not load is useless as champion, whatever the reason to force it.
    forced = request.force and LOADS not in {gate.name for gate in missed}
    return Attempt(
        key=new_key(datetime.now(UTC), secrets.token_hex(4)),
        who=user(),
        decision=PROMOTED if not missed else FORCED if forced else REFUSED,
        run_id=candidate.id,
        version=None,
        replaces=champion,
        gates=gates,
        reason=request.reason,
    )


def _refuse(
    registry: Registry, candidate: RecordedRun, attempt: Attempt, *, challenger: bool
) -> str:
    """Records the refusal and returns the explanation; the champion stays."""
    registry.ensure()
    outcome = "nothing was changed"
    if challenger and LOADS not in {gate.name for gate in failed(attempt.gates)}:
        number = _challenge(registry, candidate, attempt)
        outcome = f"version {number} is the challenger, the champion stays"
    registry.keep(attempt.key, to_tag(attempt))
    complaints = [complaint(gate) for gate in failed(attempt.gates)]
    return "\n".join([f"run {candidate.id} is refused; {outcome}", *complaints])


def _challenge(registry: Registry, candidate: RecordedRun, attempt: Attempt) -> int:
    """Gives the run's model the alias `challenger`, on its existing version or a new one."""
    versions = registry.of_run(candidate.id)
    number = (
        versions[0].number
        if versions
        else registry.add(
            str(candidate.model_uri),
            candidate.id,
            {**lineage(candidate), STATE: CHALLENGER_STATE},
            note_of_version(candidate, attempt),
        ).number
    )
    registry.point(CHALLENGER, number)
    return number
