"""The verb `audit`, from a data set to a page and lists of labels that are likely wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from pipeline.config.schema import Config
from pipeline.data.exclusion import (
    FILE_COLUMN,
    INDEX_COLUMN,
    SPLIT_COLUMN,
    excluded_positions,
)
from pipeline.data.load import EXCLUDE, ingest, preprocess, require_data
from pipeline.data.own_pictures import Pictures
from pipeline.data.polarity import is_shown_inverted
from pipeline.data.values import Array, Prepared, RawData
from pipeline.evaluation.labels import LabelAudit, audited_labels
from pipeline.reports.audit_page import Doubt, audit_html
from pipeline.reports.template import template
from pipeline.system.errors import RequestError, counted, first_of, in_percent
from pipeline.system.files import replace_text, require_others, user_path
from pipeline.system.folders import require_writable
from pipeline.system.tables import csv_text
from pipeline.system.terminal import as_text, printable, standard_output
from pipeline.tracking.runs import require_weights_of_other_data, with_weights
from pipeline.training.build import prepare_keras
from pipeline.training.folds import out_of_fold
from pipeline.verbs.audit import Audit

PRINTED = 10  # pairs of classes
Address = tuple[Any, ...]  # a file, or a split and an index in it


@dataclass(frozen=True, kw_only=True)
class Audited:
    """The judged labels of a data set.

    `addresses` are the images that the labels of the `verdict` belong to: a file, or split and
    index. `before` are those that `dataset.exclude` had left out already; the new list contains
    them too. `kept` is where an earlier list of the same name was moved to.
    """

    verdict: LabelAudit
    addresses: Sequence[Address]
    class_names: tuple[str, ...]
    fold: Array
    before: Sequence[Address]
    page: Path
    output: Path
    exclude: Path
    kept: Path | None = None

    @property
    def wrong(self) -> list[Address]:
        """The addresses of the images with likely wrong labels, the most doubtful first."""
        order = self.verdict.order[: int(self.verdict.wrong.sum())]
        return [self.addresses[position] for position in order.tolist()]


def audit_labels(
    config: Config, request: Audit, folder: Path, *, pictures: Pictures | None = None
) -> Audited:
    """Judges each label of training and validation by a model that was trained without its image.

    Writes the page, the table of all labels and the list for `dataset.exclude`; records no run.

    Raises:
        RequestError: the data set cannot be divided into so many folds, the model would learn from
            one that was trained on these labels, or a result would replace another or the data.
    """
    if config.train.teacher is not None:
        raise RequestError("train.teacher has learnt the labels that audit judges; leave it out")
    for written in (request.page, request.output, request.exclude):
        require_writable(Path(written).parent, holds="the results of audits")
    prepare_keras(config)
    started = time.monotonic()
    pictures = pictures or require_data(config)
    _require_others(request, config, pictures)
    raw = ingest(config, pictures=pictures)
    require_weights_of_other_data(config, raw, "has learnt the labels that audit judges")
    prepared = preprocess(raw, config)
    addresses, before = _addresses(raw, prepared, config, pictures)
    found = out_of_fold(with_weights(config), prepared, folder, folds=request.folds)
    verdict = audited_labels(found.split.labels, found.probabilities, found.known)
    exclude = Path(request.exclude)
    result = Audited(
        verdict=verdict,
        addresses=[addresses[row] for row in found.split.rows.tolist()],
        class_names=prepared.class_names,
        fold=found.fold,
        before=before,
        page=Path(request.page),
        output=Path(request.output),
        exclude=exclude,
        kept=_set_aside(exclude, config.dataset.get(EXCLUDE)),
    )
    for path, text in _tables(result, is_files=raw.index is not None).items():
        replace_text(path, text)
    shown = verdict.order[: min(request.shown, int(verdict.wrong.sum()))]
    page = audit_html(
        template("audit.html"),
        [_doubt(result, position) for position in shown.tolist()],
        found.split.take(shown),
        verdict,
        class_names=prepared.class_names,
        facts={
            "model": config.choices.model,
            "folds": str(request.folds),
            "seconds": f"{time.monotonic() - started:,.0f}",
            **({"excluded before": f"{len(before):,}"} if before else {}),
        },
        name=config.choices.dataset,
        list_name=str(result.exclude),
        inverted=is_shown_inverted(raw.train, raw.index),
    )
    replace_text(result.page, page)
    return result


def show(result: Audited, request: Audit) -> None:
    """Prints the likely wrong labels by pairs of classes, and the files with them."""
    verdict, names = result.verdict, result.class_names
    console = standard_output()
    table = Table("given", "proposed", "labels", show_edge=False)
    for given, proposed, count in verdict.pairs[:PRINTED]:
        table.add_row(Text(printable(names[given])), Text(printable(names[proposed])), f"{count:,}")
    if verdict.pairs:
        console.print(table)
    if (more := len(verdict.pairs) - PRINTED) > 0:
        console.print(f"further pairs of classes: {more:,}")
    count, judged = int(verdict.wrong.sum()), int(verdict.judged.sum())
    wrong, agreeing = (in_percent(share, 2) for share in (count / judged, verdict.accuracy))
    console.print(
        f"{count:,} of {judged:,} labels are likely wrong ({wrong}%); models that were trained "
        f"without the image agree with {agreeing}% of the labels",
        soft_wrap=True,
    )
    if unjudged := len(verdict.labels) - judged:
        one, many = "label is not judged: its class is", "labels are not judged: their class is"
        console.print(f"{counted(unjudged, one, many)} in one group of pictures")
    if result.before:
        console.print(
            f"{result.exclude} also has the {len(result.before):,} that were excluded before",
            soft_wrap=True,
        )
    if result.kept:
        console.print(f"the list that was there is now {result.kept}", soft_wrap=True)
    if doubted := [names[label] for label in verdict.doubted]:
        console.print(
            f"most labels of {first_of(doubted, PRINTED, printable)} look wrong; unless they are, "
            "the models have learnt too little of them to judge: audit with another model or more "
            "train.epochs",
            soft_wrap=True,
        )
    if count:
        console.print(
            f"look at {result.page}, delete from {result.exclude} what is right after all, then "
            f"train with dataset.exclude={result.exclude}",
            soft_wrap=True,
        )
    print(
        f"likely_wrong={count} page={result.page} output={result.output} exclude={result.exclude}",
        flush=True,
    )


def _require_others(request: Audit, config: Config, pictures: Pictures | None) -> None:
    """Refuses results that would replace one another, or a file of the data set.

    The new list may replace that of `dataset.exclude`, since it contains it.
    """
    table, page, exclude = map(Path, (request.output, request.page, request.exclude))
    named = {key: text for key, text in config.dataset.items() if isinstance(text, str)}
    in_use = [user_path(named.pop(EXCLUDE))] if EXCLUDE in named else []
    lists = pictures.listing.lists if pictures else ()
    read = [*map(user_path, named.values()), *lists]
    require_others([table, page, exclude], read, "the files of the data set")
    require_others([table, page], in_use, "the files of the data set")


def _addresses(
    raw: RawData, prepared: Prepared, config: Config, pictures: Pictures | None
) -> tuple[Mapping[int, Address], list[Address]]:
    """The address of each row of the packed array, and those that are excluded already."""
    exclude = config.dataset.get(EXCLUDE)
    if raw.index is not None:
        files = raw.index.files
        rows = np.concatenate([prepared.train.rows, prepared.val.rows]).tolist()
        out = pictures.excluded if pictures else ()  # with those that cannot be read
        return {row: (files[row],) for row in rows}, [(file,) for file in sorted(out)]
    splits = (raw.whole or raw).splits
    addresses: dict[int, Address] = {
        row: (split, position)
        for split, images in splits.items()
        for position, row in enumerate(images.rows.tolist())
    }
    if exclude is None:
        return addresses, []
    gone = excluded_positions(exclude, {split: len(images) for split, images in splits.items()})
    return addresses, [(split, position) for split in gone for position in gone[split].tolist()]


def _doubt(result: Audited, position: int) -> Doubt:
    verdict = result.verdict
    return Doubt(
        name=" ".join(map(str, result.addresses[position])),
        given=int(verdict.labels[position]),
        proposed=int(verdict.proposed[position]),
        of_given=float(verdict.probabilities[position, verdict.labels[position]]),
        of_proposed=float(verdict.sure[position]),
    )


def _set_aside(path: Path, in_use: str | None) -> Path | None:
    """Renames an existing list in the place of the new one, unless the new one contains it.

    Somebody may have edited it.
    """
    if not path.is_file() or (in_use and path.resolve() == user_path(in_use).resolve()):
        return None
    number = 1
    while (other := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return path.rename(other)


def _tables(result: Audited, *, is_files: bool) -> dict[Path, str]:
    """The table of all labels and the list of the likely wrong ones, by file."""
    of_address = (FILE_COLUMN,) if is_files else (SPLIT_COLUMN, INDEX_COLUMN)
    head = (*of_address, "given", "proposed", "likely_wrong", "quality", "probability", "fold")
    rows = list(_rows(result))
    wrong = len(result.wrong)
    blank = ("",) * (len(head) - len(of_address))
    before = [(*map(_cell, address), *blank) for address in result.before]
    return {
        result.output: csv_text([head, *rows]),
        result.exclude: csv_text([head, *rows[:wrong], *before]),
    }


def _rows(result: Audited) -> Iterator[tuple[Any, ...]]:
    """The rows of the table, the likely wrong labels first."""
    verdict, names = result.verdict, [as_text(name) for name in result.class_names]
    for position in verdict.order.tolist():
        yield (
            *map(_cell, result.addresses[position]),
            names[verdict.labels[position]],
            names[verdict.proposed[position]],
            str(bool(verdict.wrong[position])).lower(),
            f"{verdict.quality[position]:.4f}" if verdict.judged[position] else "",
            f"{verdict.sure[position]:.4f}",
            str(int(result.fold[position]) + 1),
        )


def _cell(part: Any) -> str:
    return as_text(str(part))
