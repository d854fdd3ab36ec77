"""The errors that end a command; their message is all that a user needs to see."""

import re
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


class PipelineError(Exception):
    """The work failed (exit code 1). The message says what went wrong and how to fix it."""

    exit_code = 1


class RequestError(PipelineError):
    """The request was wrong (exit code 2): configuration, arguments, a missing or damaged file."""

    exit_code = 2


class Pruned(Exception):
    """A search ended a job that is not worth continuing; this is not a failure."""


# Beginnings of messages whose reason is on the next line.
_HEADING = re.compile(
    r".*[:({\[]$|\d+ validation errors? for |Exception encountered when calling |"
    r"Error (parsing|merging|in call|loading) |In '|Traceback "
)


def first_line(text: str, otherwise: str = "no reason given") -> str:
    """The first line of a library's message that gives a reason, after its headings."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    lines = [line.strip() for line in plain.splitlines() if line.strip(" \t^~-=")]
    said = lines[:1]
    for line in lines[1:]:
        if not _HEADING.match(said[-1]):
            break
        said.append(line)
    return " ".join(said) or otherwise


def joined(names: Sequence[str]) -> str:
    """The names joined as in a sentence: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def first_of(
    things: Collection[T], most: int, named: Callable[[T], str] = str, *, separator: str = ", "
) -> str:
    """The names of the first of many things, and how many more there are: "a, b and 3 more"."""
    more = f" and {len(things) - most:,} more" if len(things) > most else ""
    return separator.join(map(named, islice(things, most))) + more


def some_of(names: Sequence[str], most: int) -> str:
    """The first names, and the number of all if there are more: `a, b, … (12)`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names):,})"


def counted(count: int, one: str, many: str) -> str:
    """A count with its words: `counted(1, "row is", "rows are")` is "1 row is"."""
    return f"{count:,} {one if count == 1 else many}"


def in_percent(share: float, digits: int) -> str:
    """A share in percent, without the sign: `0.8665` → `86.65`.

    What is neither all nor nothing is never shown as such: `0.99999` → `>99.99`.
    """
    value = 100 * round(share, 12)  # intervals that end at 0 or 1 may miss it by less
    text = f"{value:.{digits}f}"
    if 0 < value < 100 and float(text) in (0, 100):
        step = 10.0**-digits
        return f"<{step:.{digits}f}" if value < 50 else f">{100 - step:.{digits}f}"
    return text


def one_line(error: BaseException) -> str:
    """Any exception in one line: its type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(str(error))}"
