"""How work can end early; the message is all a user needs to see."""


class PipelineError(Exception):
    """The work failed (exit code 1). The message says what went wrong and how to mend it."""

    exit_code = 1


class RequestError(PipelineError):
    """The request was wrong (exit code 2): configuration, arguments, a missing or damaged file."""

    exit_code = 2


class Pruned(Exception):
    """A trial of a search that is not worth going on with; no failure."""


def first_line(text: str, otherwise: str = "no reason given") -> str:
    """What a library's message says first, for a message of ours to quote."""
    return text.strip().splitlines()[0] if text.strip() else otherwise


def one_line(error: BaseException) -> str:
    """Any exception as a line: its type and what it says first."""
    return f"{type(error).__name__}: {first_line(str(error))}"
