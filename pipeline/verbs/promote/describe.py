"""The descriptions of a registered model and its versions, and the ledger with its gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.reports.notes import (
    REPORT_PAGE,
    accuracy_table,
    code_block,
    escaped,
    markdown_table,
    summary,
)
from pipeline.tracking.registry import Registry
from pipeline.tracking.values import CHAMPION, Present, RecordedRun, champion_uri
from pipeline.verbs.promote.ledger import (
    FORCED,
    Attempt,
    artifact,
    entries,
    from_text,
    gate_rows,
    history_markdown,
)


def note_of_version(run: RecordedRun, line: Attempt) -> str:
    """Describes a version: its accuracies with intervals, how it was promoted, its command."""
    how = "with the gates overruled" if line.decision == FORCED else "through the gates"
    instead = f" in place of version {line.replaces}" if line.replaces else ""
    reason = f": {escaped(line.reason)}" if line.reason else ""
    changed = " and uncommitted changes" if run.has_uncommitted_changes else ""
    page = f"#/experiments/{run.experiment_id}/runs/{run.id}"
    report = f", [its report]({page}/artifacts/{REPORT_PAGE})" if run.has(REPORT_PAGE) else ""
    parts = [
        summary(run.config, run.logged.get("model/parameters")),
        _accuracies(run),
        f"Judged {line.when:%Y-%m-%d %H:%M} UTC by {escaped(line.who)}, "
        f"{line.decision}{instead} {how}{reason}."
        if line.decision != "refused"
        else f"A challenger: refused {line.when:%Y-%m-%d %H:%M} UTC, by {escaped(line.who)}.",
        markdown_table(("gate", "value", "limit", ""), gate_rows(line.gates)) if line.gates else "",
        code_block(run.command),
        f"[Run {escaped(run.label)}]({page}){report}; "
        f"code {(run.commit or 'unknown')[:7]}{changed}",
    ]
    return "\n\n".join(filter(None, parts))


def note_of_model(
    registry: Registry, present: Present, lines: Sequence[Attempt], champion: RecordedRun | None
) -> str:
    """Describes a registered model: its champion with accuracies, and the ledger's newest lines.

    `lines` is the ledger with its gates, `champion` the run of the current champion.
    """
    version = present.aliases.get(CHAMPION)
    what = f"Classifies images of **{escaped(registry.name)}**. " + (
        f"Its champion is version {version}, `{champion_uri(escaped(registry.name))}`."
        if version
        else "It has no champion yet."
    )
    parts = [
        what,
        _accuracies(champion) if champion else "",
        "**Ledger**, the newest first (`python -m pipeline history` shows all of it):",
        history_markdown(lines),
    ]
    return "\n\n".join(filter(None, parts))


def whole_ledger(registry: Registry, present: Present, newest: int | None = None) -> list[Attempt]:
    """The ledger, oldest first; the `newest` lines, or all, have the gates from their runs."""
    lines = entries(present.tags)
    start = 0 if newest is None else max(0, len(lines) - newest)
    return [*lines[:start], *(_with_gates(registry, line) for line in lines[start:])]


def _with_gates(registry: Registry, line: Attempt) -> Attempt:
    text = None if line.gates else registry.attached(line.run_id, artifact(line.key))
    return replace(line, gates=from_text(line.key, text).gates) if text else line


def _accuracies(run: RecordedRun) -> str:
    measured = {
        split: (run.metrics[f"{split}/accuracy"], run.sizes[split])
        for split in ("test", "val")
        if f"{split}/accuracy" in run.metrics and run.sizes.get(split)
    }
    return accuracy_table(measured)
