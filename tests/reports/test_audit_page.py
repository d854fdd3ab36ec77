from __future__ import annotations

import numpy as np

from pipeline.evaluation.labels import audited_labels
from pipeline.reports.audit_page import Doubt, audit_html
from pipeline.reports.template import template


def test_names_on_the_page_are_text() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1], np.int32)
    probabilities = np.eye(2, dtype=np.float32)[[1, 1, 0, 1, 0, 1]] * 0.8 + 0.1
    verdict = audited_labels(labels, probabilities, np.ones(6, bool))
    page = audit_html(
        template("audit.html"),
        [Doubt(name="<i>a.png", given=0, proposed=1, of_given=0.1, of_proposed=0.9)],
        np.zeros((1, 8, 8, 3), np.uint8),
        verdict,
        class_names=("<b>cat", "dog & co"),
        facts={"model": "cnn"},
        name="<u>set",
        list_name="exclude.csv",
        inverted=False,
    )
    assert "&lt;i&gt;a.png" in page
    assert "&lt;b&gt;cat" in page
    for raw in ("<i>a", "<b>cat", "<u>set"):
        assert raw not in page
