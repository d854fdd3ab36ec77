"""`python -m pipeline [verb] [key=value …]`: picks the verb and hands over to Hydra."""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from traceback import format_exception
from types import FrameType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline.config.allowed import check_search_path, check_words
from pipeline.config.compose import compose, hide_composed, known_to_hydra
from pipeline.config.messages import error_line
from pipeline.config.mistakes import Command, refuse_mistakes
from pipeline.config.rules import choose
from pipeline.config.schema import Config, register, validate, validate_request
from pipeline.config.search_path import CONF, VERSION_BASE, files_of
from pipeline.config.words import (
    COMPLETES,
    LAUNCHED_BY_MLPROJECT,
    addressed,
    flags_apart,
    full_word,
    left_to_jobs,
    meant_by,
    normalise,
    once,
    quoted,
    refuse_settings_of_a_run,
    require_our_sweeper,
    require_utf8,
)
from pipeline.libraries import UNSUPPORTED, configure_libraries
from pipeline.system.errors import PipelineError, RequestError
from pipeline.system.secrets import hide, learn, learn_environment
from pipeline.system.terminal import (
    as_line,
    as_lines,
    leave_terminal,
    native_messages_to,
    prepare_streams,
    tell_unwritable_logs,
)
from pipeline.tracking.addresses import require_artifacts_writable, store_address
from pipeline.verbs import Verb, requests, verbs

# The words of a verb that keeps no log.
NO_FOLDER = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none")

# What bash evaluates to complete the words of a command: `python -m pipeline`, or an installed one.
COMPLETION = r"""_pipeline_completion() {
    local words=($COMP_LINE) command word="${COMP_LINE:0:$COMP_POINT}"
    command="${words[0]}"
    if [[ "$command" == *python* ]]; then
        [[ "${words[1]} ${words[2]}" == "-m pipeline" ]] || return
        command="$command -m pipeline"
    fi
    word="${word##* }"
    local choices=$(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" \
        $command -sc query=bash 2>/dev/null)
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _pipeline_completion """

log = logging.getLogger("pipeline")


# Set besides raising the exception, which a library being imported may turn into an ImportError.
stopped_by: list[signal.Signals] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is handled as tidily as Ctrl-C."""


class HungUp(KeyboardInterrupt):
    """SIGHUP: the terminal was closed, or the connection to it was lost."""


def main() -> int:
    """Runs the command line; returns the exit code."""
    prepare_streams()
    if sys.platform == "win32":  # which lacks a part of what follows
        print(UNSUPPORTED, file=sys.stderr)
        return RequestError.exit_code
    signal.signal(signal.SIGTERM, _stop)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    tell_unwritable_logs()
    learn_environment()
    learn(typed := sys.argv[1:])
    show_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra pass its errors on, to be explained here
    try:
        if sys.argv[1:2] in (["-sc"], ["--shell-completion"]):
            return _complete(sys.argv[2:])
        verb, words = _split_verb(sys.argv[1:])
        given, multirun = _understood(verb, words)
        if told := _told_alone(verb, given):
            print(told, flush=True)
            return 0
        all_words = given if verb.keeps_log else [*NO_FOLDER, *given]
        sys.argv[1:] = sorted(all_words, key=lambda word: not word.startswith("-"))
        register(requests(), of=None if _shown(given) else {verb.name})
        check_words(given, multirun=multirun)
        if not _shown(given):
            configure_libraries()  # a module of the user's may import them with the configuration
        try:
            _with_hydra(verb)
            _check_shown(verb, given)
        finally:  # after --help Hydra exits by itself
            sys.stdout.flush()  # so that a reader who has left is noticed here
    except (Exception, KeyboardInterrupt) as error:
        if _is_unread(error):
            return _end_unread()
        if stopped_by:
            # A verb that was stopped may report itself how far it got.
            said = str(error) if isinstance(error, KeyboardInterrupt) else ""
            kept = said or "what was recorded so far is kept"
            print(f"stopped by {stopped_by[0].name}; {kept}", file=sys.stderr)
            return 128 + stopped_by[0]
        told = "".join(format_exception(error)) if show_traceback else error_line(error)
        print(as_lines(_values_in_line(hide(told), typed)), file=sys.stderr)
        # Errors from outside the work come from composing its configuration or from its folder.
        return error.exit_code if isinstance(error, PipelineError) else RequestError.exit_code
    return 0


def _values_in_line(told: str, words: Sequence[str]) -> str:
    """The message, with each value that was typed in these words on one line."""
    for value in (word.partition("=")[2].strip("'\" ") for word in words):
        if "\n" in value.strip():
            told = told.replace(value, as_line(value))
    return told


def _understood(verb: Verb, words: list[str]) -> tuple[list[str], bool]:
    """The words after a verb in Hydra's order, flags first, and whether they ask for a sweep.

    Raises:
        RequestError: a word is a mistake, or has no effect here.
    """
    require_utf8(words)
    flags, settings = flags_apart(normalise(words), verb.request)
    multirun = "--multirun" in flags
    if multirun and verb.name != "run":
        raise RequestError(f"{verb.name} -m: a sweep is made of runs; leave out {verb.name}")
    if words[:1] == [LAUNCHED_BY_MLPROJECT]:
        settings = once([full_word(word, verb.name, verb.request) for word in settings])
    command = _command(verb, flags)
    if not command.helps:
        require_utf8([str(Path.cwd())])
    refuse_mistakes(settings, command, verbs())
    given = addressed(settings, verb.name, verb.request, multirun=multirun)
    if verb.of_record and not command.helps:
        refuse_settings_of_a_run(given, verb.name)
    if multirun:
        require_our_sweeper(given)
        given = left_to_jobs(given)
    return [*flags, *given], multirun


def _command(verb: Verb, flags: list[str]) -> Command:
    values = dict(flag.partition("=")[::2] for flag in flags)
    return Command(
        verb=verb.name,
        requests=requests(),
        ignored=verb.ignores,
        needs=verb.needs,
        first=verb.first,
        multirun="--multirun" in values,
        dry=_is_dry(flags),
        helps=_shown(flags) and not _is_dry(flags),
        files=partial(
            files_of, more=[Path(values["--config-dir"])] if "--config-dir" in values else []
        ),
    )


def _shown(words: list[str]) -> bool:
    """Whether flags among the words ask to show the configuration or help instead of the work."""
    flags = {word.partition("=")[0] for word in words}
    return bool({"--cfg", "--info", "--help", "--hydra-help", "--version"} & flags)


def _is_dry(words: list[str]) -> bool:
    """Whether flags among the words ask to show the whole configuration, which is checked then."""
    flags = dict(word.partition("=")[::2] for word in words if word.startswith("-"))
    others = {"--multirun", "--config-name", "--config-path", "--package"}
    return flags.get("--cfg") in ("job", "all") and not others & flags.keys()


def _told_alone(verb: Verb, given: list[str]) -> str | None:
    """What flags ask for and Hydra does not know: versions, or the help of a verb with own keys."""
    if "--version" in given:
        return _versions()
    return _usage(verb) if "--help" in given and verb.request is not None else None


def _usage(verb: Verb) -> str:
    """The help of a verb that has keys of its own: these, as in their file."""
    words = " ".join(filter(None, [verb.name, verb.needs]))
    keys = (CONF / verb.name / "default.yaml").read_text(encoding="utf-8")
    return (
        f"usage: python -m pipeline {words} [key=value ...]\n\n{verb.help}\n\n{keys}\n"
        "python -m pipeline --help shows all verbs, groups, keys and defaults."
    )


def _versions() -> str:
    """The versions of the pipeline, of Python and of the libraries that results depend on most."""
    import tomllib

    from pipeline.tracking.lineage import NAMED, PACKAGE, ROOT, own_version

    project = ROOT / "pyproject.toml"
    own = own_version()
    if own is None and project.exists():  # a checkout
        own = tomllib.loads(project.read_text())["project"]["version"]
    libraries = ", ".join(f"{name} {_version_of(name)}" for name in NAMED)
    return f"{PACKAGE} {own or '?'} (Python {python_version()}, {libraries})"


def _version_of(library: str) -> str:
    try:
        return version(library)
    except (PackageNotFoundError, KeyError):  # KeyError: its metadata is damaged
        return "?"


def _complete(asked: list[str]) -> int:
    """Prints code for bash to evaluate, or the completions of the last word of its COMP_LINE.

    Hydra completes groups, their files and keys, but does not know the verbs.
    """
    if asked == ["install=bash"]:
        name = Path(sys.argv[0]).name
        print(COMPLETION + ("python python3" if name == "__main__.py" else name))
        return 0
    if not asked or (asked[0].startswith("query=") and "COMP_LINE" not in os.environ):
        raise RequestError(f"--shell-completion: {COMPLETES}")
    if asked == ["query=bash"]:
        line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0")) or None]
        words = re.sub(r"^\S*python\S*\s+-m\s+|^", "", line).partition(" ")[2]
        first, space, rest = words.lstrip().partition(" ")
        verb = verbs().get(first) if space else None
        if not space:
            print(*(f"{name} " for name in verbs()))
        if verb and verb.request:
            print(*(f"{field.name}=" for field in fields(verb.request)))
        os.environ["COMP_LINE"] = f"pipeline {rest if verb else words}"
    register(requests())
    check_search_path()
    _with_hydra(verbs()["run"])
    return 0


def _split_verb(arguments: list[str]) -> tuple[Verb, list[str]]:
    known = verbs()
    if arguments[:1] and arguments[0].startswith("-"):
        flags, rest = flags_apart(arguments)
        verb, words = _split_verb(rest)
        return verb, [*flags, *words]
    if not arguments or "=" in arguments[0] or arguments[0].startswith(("+", "~", "–", "—")):
        return known["run"], arguments
    name, *rest = arguments
    if name not in known:
        if key := meant_by(re.split(r"[\s:]", name)[0]):
            refuse_mistakes(arguments, Command(verb="run", requests={}, files=files_of))
            raise RequestError(f"{name}: settings are written key=value, as in {key}=…")
        if (flag := name.lower()) in ("multirun", "help", "version"):
            raise RequestError(f"no verb {name!r}; did you mean --{flag}?")
        raise RequestError(f"no verb {name!r}; {choose(name, known)}")
    return known[name], rest


def _with_hydra(verb: Verb) -> None:
    OmegaConf.register_new_resolver("verbs", _described, replace=True)
    failures: list[Exception] = []

    def pipeline(composed: DictConfig) -> None:
        try:
            _carry_out(verb, composed)
        except Exception as error:
            # Hydra would put its own line before ours; in a multirun that line says which job.
            if HydraConfig.get().mode is not RunMode.RUN:
                raise
            failures.append(error)

    hydra.main(config_path=str(CONF), config_name="config", **VERSION_BASE)(pipeline)()
    if failures:
        raise failures[0]


def _described() -> str:
    """A line per verb, for the help."""
    longest = max(map(len, verbs()))
    return "\n".join(f"  {name:<{longest}}   {verb.help}" for name, verb in verbs().items())


def _check_shown(verb: Verb, given: list[str]) -> None:
    """Checks the configuration that `--cfg` has shown, so that it can serve as a dry run.

    Raises:
        RequestError: the command without `--cfg` would be refused; says why.
    """
    if not _is_dry(given):
        return
    flags = dict(word.partition("=")[::2] for word in given if word.startswith("-"))
    words = [word for word in given if not word.startswith("-")]
    if folder := flags.get("--config-dir"):
        words.append(f"hydra.searchpath=[{quoted(str(Path(folder).absolute()))}]")
    composed = compose(words)
    with known_to_hydra(composed):
        _checked(verb, composed)


def _checked(verb: Verb, composed: DictConfig) -> tuple[Config, Any]:
    """The checked configuration for a verb, and its checked request or None.

    Raises:
        RequestError: a value is refused, or a setting has no effect.
    """
    config = validate(composed)
    if config.tracking.offline and (verb.of_record or not verb.records):
        raise RequestError(
            f"tracking.offline=true: only a new run can do without a store, not {verb.name}"
        )
    request = verb.request and validate_request(composed, verb.name, verb.request)
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:  # a job of another sweeper must not end in the middle
        verb.require_effects(hydra.overrides.task, config, request)
    return config, request


def _carry_out(verb: Verb, composed: DictConfig) -> None:
    """Runs a verb on a checked configuration; imports what it needs only now."""
    hide_composed(composed)
    folder = Path(HydraConfig.get().runtime.output_dir)
    config, request = _checked(verb, composed)
    if verb.records:  # refused before anything slow is imported
        require_artifacts_writable(config)
    try:
        pictures = verb.require_possible(config)
        with native_messages_to(folder / "tensorflow.log" if verb.keeps_log else Path(os.devnull)):
            verb.load(config)
        value = verb.carry_out(config, request, folder, pictures)
        if value is not None:
            verb.print(value, request)
    except RequestError:
        raise
    except Exception as error:
        log.debug("%s failed", verb.name, exc_info=True)
        if _is_unread(error):
            raise
        where = f"\nThe log is in {folder}" if verb.keeps_log else ""
        raise PipelineError(f"{_in_words(error, config)}{where}") from error


def _in_words(error: Exception, config: Config) -> str:
    """The line that explains an error; the store's words if that is away."""
    if "mlflow" in sys.modules:
        from pipeline.tracking.client import STORE_ERRORS, is_passing, why_away

        if isinstance(error, STORE_ERRORS) and is_passing(error):
            store = hide(store_address(config.tracking.uri))
            return f"tracking store {store} cannot be used: {why_away(error)}"
    return error_line(error)


def _is_unread(error: BaseException) -> bool:
    """Whether an error means that nobody reads the output any more, as in `history | head`.

    Sockets and pipes between processes break with the same error, so stdout itself is tested.
    """
    if not isinstance(error, BrokenPipeError):
        return False
    output = select.poll()
    output.register(1, 0)  # what went wrong is reported in any case
    return any(event & select.POLLERR for _, event in output.poll(0))


def _end_unread() -> int:
    """The exit code of a command that SIGPIPE has ended; drops the rest of the output."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return 128 + signal.SIGPIPE


def _stop(signum: int, frame: FrameType | None) -> None:
    is_again = signum in stopped_by
    stopped_by.append(signal.Signals(signum))
    if signum == signal.SIGHUP:
        leave_terminal()
        if is_again:  # the terminal and the shell may both tell that it was closed
            return
        raise HungUp
    raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
