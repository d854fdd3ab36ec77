"""The page of an audit: `LabelAudit → str`, self-contained HTML of labels that are likely wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.values import Array
from pipeline.evaluation.labels import LabelAudit
from pipeline.reports.images import sprite, thumbnails
from pipeline.reports.page import clean

if TYPE_CHECKING:
    from jinja2 import Template

_SIDE = 96  # pixels of a thumbnail's longer side
_PAIRS, _CLASSES = 40, 1000  # shown at most


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """A label that is likely wrong: the image's name, two classes and their probabilities."""

    name: str
    given: int
    proposed: int
    of_given: float
    of_proposed: float


def audit_html(  # noqa: PLR0913 (what there is to show)
    template: Template,
    doubts: Sequence[Doubt],
    images: Array,
    verdict: LabelAudit,
    *,
    class_names: Sequence[str],
    facts: Mapping[str, str],
    name: str,
    list_name: str,
    inverted: bool,
) -> str:
    """Renders `audit.html`; `images` u8[N,H,W,C] are those of the `doubts`.

    They are `inverted` as in a report; `facts` are shown as they are; `list_name` is the file for
    `dataset.exclude`.
    """
    names = [clean(one) for one in class_names]
    classes = len(names)
    counts = np.bincount(verdict.labels, minlength=classes)
    wrong = np.bincount(verdict.labels[verdict.wrong], minlength=classes)
    shares = wrong / np.maximum(counts, 1)
    order = np.argsort(-shares, kind="stable")[:_CLASSES].tolist()
    most = float(shares.max()) or 1.0
    return template.render(
        name=clean(name),
        list_name=clean(list_name),
        facts=facts,
        total=len(verdict.labels),
        judged=int(verdict.judged.sum()),
        wrong=int(verdict.wrong.sum()),
        accuracy=verdict.accuracy,
        doubts=[(one, clean(one.name)) for one in doubts],
        names=names,
        pairs=verdict.pairs[:_PAIRS],
        more_pairs=len(verdict.pairs[_PAIRS:]),
        classes=[
            (names[k], int(counts[k]), int(wrong[k]), float(shares[k]), float(shares[k]) / most)
            for k in order
        ],
        sprite=sprite(thumbnails(images, _SIDE, inverted=inverted), inverted=inverted, shown=_SIDE)
        if len(images)
        else None,
    )
