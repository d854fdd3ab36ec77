"""The two ways a command can fail; the message is all a user needs to see of either."""


class PipelineError(Exception):
    """The work failed (exit code 1). The message says what went wrong and how to mend it."""

    exit_code = 1


class RequestError(PipelineError):
    """The request was wrong (exit code 2): configuration, arguments, a missing or damaged file."""

    exit_code = 2
