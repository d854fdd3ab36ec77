from __future__ import annotations

import os
from dataclasses import replace

import pytest

from pipeline.data.values import Identity
from pipeline.tracking import origin
from pipeline.tracking.lineage import TF_THREADS, Code
from pipeline.tracking.origin import Origin, differences

THEN = Origin(
    commit="0123456789abcdef0123",
    patch="",
    packages={"Python": "3.11.7", "numpy": "2.4.6", "zstd": "1.0"},
    hardware={"host": "a", "cpu": "x", "cores": "2", "threads": "1", "memory_gb": "8.0"},
    data=Identity(fingerprint="f" * 64),
)


def said(now: Origin, then: Origin = THEN) -> list[str]:
    return [f"{difference.kind}: {difference}" for difference in differences(then, now)]


def test_what_is_as_it_was_makes_no_difference_nor_do_host_and_memory() -> None:
    assert said(replace(THEN, hardware={**THEN.hardware, "host": "b", "memory_gb": "9.0"})) == []


def test_every_kind_of_difference_is_told_with_both_sides() -> None:
    now = Origin(
        commit="fedcba",
        patch="--- a/x\n+++ b/x\n-one\n+two\n+three\n",
        packages={"Python": "3.12.1", "numpy": "2.4.6", "attrs": "25"},
        hardware={**THEN.hardware, "cores": "4"},
        data=Identity(fingerprint="e" * 64),
    )
    assert said(now) == [
        "code: commit was 0123456789ab and is fedcba",
        "code: uncommitted changes was none and is 3 lines",
        "environment: Python was 3.11.7 and is 3.12.1",
        "environment: attrs was none and is 25",
        "environment: zstd was 1.0 and is none",
        "data: data was ffffffffffff and is eeeeeeeeeeee",
        "hardware: cores was 2 and is 4",
    ]


def test_other_groups_of_the_same_pictures_are_a_difference_if_both_are_known() -> None:
    groups = [
        replace(THEN, data=Identity(fingerprint="f" * 64, grouping=one and one * 64))
        for one in ("a", "b", None)
    ]
    assert said(groups[1], groups[0]) == [
        "data: the grouping of the pictures was aaaaaaaaaaaa and is bbbbbbbbbbbb"
    ]
    assert said(groups[0], groups[0]) == said(groups[0], groups[2]) == []


def test_other_pretrained_weights_are_a_difference_if_the_run_has_recorded_its_own() -> None:
    known = replace(THEN, weights="a" * 64)
    assert said(replace(THEN, weights="b" * 64), known) == [
        "data: model.weights was aaaaaaaaaaaa and is bbbbbbbbbbbb"
    ]
    assert said(known, known) == said(known, THEN) == []


def test_two_patches_of_one_length_are_told_apart() -> None:
    then, now = (replace(THEN, patch=f"+{text}\n") for text in ("one", "two"))
    [line] = said(now, then)
    assert line == "code: uncommitted changes was 1 lines (A) and is 1 lines (B)"


@pytest.mark.parametrize("is_now", [True, False])
def test_a_checkout_that_git_could_not_read_is_not_said_to_have_no_changes(is_now: bool) -> None:
    changed, unread = replace(THEN, patch="+one\n"), replace(THEN, commit=None)
    told = ("0123456789ab", "unknown") if is_now else ("unknown", "0123456789ab")
    assert said(*((unread, changed) if is_now else (changed, unread))) == [
        "code: commit was {} and is {}".format(*told)
    ]


def test_however_many_packages_differ_each_is_named() -> None:
    now = replace(THEN, packages={**THEN.packages, **{f"p{n:02}": "1" for n in range(20)}})
    assert said(now) == [f"environment: p{n:02} was none and is 1" for n in range(20)]


def test_a_package_is_the_same_however_its_name_is_written() -> None:
    header = "# Python 3.11.7 on Linux-6.1\n"
    then = origin.packages(f"{header}Jinja2==3.1\ntyping_extensions==4.1\n")
    now = origin.packages(f"{header}jinja2==3.2\ntyping-extensions==4.1\n")
    [found] = origin.in_packages(then, now)
    assert str(found) == "jinja2 was 3.1 and is 3.2"


def test_a_recorded_origin_is_read_from_tags_and_texts() -> None:
    tags = {
        "mlflow.source.git.commit": "abc",
        "hardware.cpu": "x",
        "data.fingerprint": "f",
        "data.groups": "g",
        "version.numpy": "1",
    }
    text = "# Python 3.11.7 on Linux-6.1\nkeras==3.15.1\nnumpy==2.4.6\n"
    recorded = origin.recorded_origin(tags, patch="p", environment=text)
    hidden = origin.recorded_origin(
        tags | {"code.patch_sha256": Code(commit=None, patch="q").patch_sha256},
        patch="***",
        environment=text,
    )
    assert origin.differences(hidden, replace(recorded, patch="q")) == []
    assert recorded == Origin(
        commit="abc",
        patch="p",
        packages={"Python": "3.11.7", "keras": "3.15.1", "numpy": "2.4.6"},
        hardware={"cpu": "x"},
        data=Identity(fingerprint="f", grouping="g"),
    )


def test_what_begins_here_differs_in_nothing_from_itself() -> None:
    now = origin.here(Identity(fingerprint="f"))
    assert differences(now, now) == []
    assert "tensorflow" in now.packages


@pytest.mark.parametrize(("set_by_user", "expected"), [(None, "1"), ("", "1"), ("3", "3")])
def test_the_threads_of_then_are_used_unless_the_user_says_otherwise(
    set_by_user: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TF_THREADS, set_by_user or "")
    if set_by_user is None:
        monkeypatch.delenv(TF_THREADS)
    origin.with_threads_of(THEN)
    assert os.environ[TF_THREADS] == expected
