"""The errors that end a command; their message is all that a user needs to see."""


class PipelineError(Exception):
    """The work failed (exit code 1). The message says what went wrong and how to fix it."""

    exit_code = 1


class RequestError(PipelineError):
    """The request was wrong (exit code 2): configuration, arguments, a missing or damaged file."""

    exit_code = 2


class Pruned(Exception):
    """A search ended a trial that is not worth continuing; this is not a failure."""


def first_line(text: str, otherwise: str = "no reason given") -> str:
    """The first line of a library's message, to quote in one of ours."""
    return text.strip().splitlines()[0] if text.strip() else otherwise


def one_line(error: BaseException) -> str:
    """Any exception in one line: its type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(str(error))}"
