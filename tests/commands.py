"""The command line as a child process, and a configuration as the command line would compose it."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import pkgutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import omegaconf.base
from hydra import initialize_config_dir
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import Overrides
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict
from omegaconf.errors import OmegaConfBaseException

import pipeline.api as api
import pipeline.config.compose as compose_module
from pipeline.api import compose
from pipeline.config.compose import Composer
from pipeline.config.compose import compose as compose_words
from pipeline.config.schema import Config, register, validate, validate_request
from pipeline.config.search_path import project_folder
from pipeline.config.trusted import trust, trusted
from pipeline.config.words import key_of, refuse_settings_of_a_run
from pipeline.tracking.ui import server_command, server_environment, wait_for
from pipeline.verbs import requests, verbs
from tests.stores import MADE_ONCE
from tests.stress.matrix import SHARE
from tests.warm import WarmProcess, run_warm, start_warm

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
TIMEOUT_S = 300
# Drawing takes longer than training: without plots, page and log a run takes a third of the time.
LEAN = ("train.plots=[]", "evaluate.plots=[]", "evaluate.report=false", "train.tensorboard=false")
QUICK = ("dataset=synthetic", "model=linear", "train.epochs=1", *LEAN)
DRAWN = ("dataset=synthetic", "model=linear", "train.epochs=1")


class Terminal(io.StringIO):
    """A file that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def environment(**changes: str) -> dict[str, str]:
    """This process' environment without variables that redirect a run or are set for tests."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "HYDRA_", "PYTHONDONTWRITE", "TF_", "XLA_", "KERAS_"))
    }
    return kept | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"} | changes


def merged(arguments: Sequence[str]) -> list[str]:
    """The words, of which later ones replace earlier ones of the same key: `*QUICK, "model=cnn"`.

    Words of a sweep are not changed.
    """
    return [*arguments] if "-m" in arguments else latest(arguments)


def latest(words: Sequence[str]) -> list[str]:
    """The words without those whose key occurs again later."""
    last = {key_of(word): position for position, word in enumerate(words)}
    return [
        word
        for position, word in enumerate(words)
        if "=" not in word or last[key_of(word)] == position
    ]


def pipeline(
    *arguments: str, cwd: Path, before: Callable[[], object] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m pipeline …` in the folder `cwd`, in a process with all libraries imported.

    `before` names a function of a module that the process calls first.
    """
    words, variables = merged(arguments), environment(**env)
    return run_warm(words, cwd=cwd, env=variables, timeout=TIMEOUT_S, before=before)


def undrawn() -> None:
    """Makes a sweep draw no plots of its own: for `before`, where nothing is asked of them."""
    from pipeline.sweeps import plots

    plots.draw_sweep = lambda *given: {}


@contextmanager
def begun(
    *arguments: str, cwd: Path, before: Callable[[], object] | None = None, **env: str
) -> Iterator[WarmProcess]:
    """Starts `python -m pipeline …` without waiting for it; kills it at the end of the block."""
    with TemporaryDirectory() as printed:
        process = start_warm(
            merged(arguments),
            cwd=cwd,
            env=environment(**env),
            printed=Path(printed),
            before=before,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def mlflow_server(database: Path, *options: str, port: int | None = None) -> Iterator[str]:
    """The address of an MLflow server over a SQLite file, as `docs.screenshots.server` gives it.

    It is forked with everything imported, which takes a tenth of the time.
    """
    port = port or free_port()
    address, (_, _, _, *words) = (
        f"http://127.0.0.1:{port}",
        server_command(database, host="127.0.0.1", port=port),
    )
    if options:
        words = [*words[: words.index("--no-serve-artifacts")], *options]
    folder, env = database.resolve().parent, environment() | server_environment()
    with TemporaryDirectory() as printed:
        process = start_warm(
            words, cwd=folder, env=env, printed=Path(printed), before=_serve_here, module="mlflow"
        )
        try:
            assert wait_for(address, process), process.err.read_text()  # type: ignore[arg-type]
            yield address
        finally:
            process.kill()
            process.wait()


def _serve_here() -> None:
    """Makes `mlflow server` answer requests itself instead of in a process that it starts."""
    from mlflow import server
    from uvicorn.main import main

    def serve(command: list[str], *, extra_env: dict[str, str], **_: Any) -> None:
        os.environ.update(extra_env)
        main(command[3:])

    server._exec_cmd = serve


def fresh_pipeline(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Like `pipeline`, in a new process without anything imported, as a user's."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *merged(arguments)],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def _is_ours() -> bool:
    """Whether composing involves no files or modules of a user."""
    return not trusted() and project_folder() is None


def copies_of(value: Any) -> Callable[[], Any]:
    """A function that returns copies of a configuration, in a sixth of the time of `deepcopy`."""
    written, classes = _written(value)
    return lambda: _read(written, classes)


def _written(value: Any) -> tuple[bytes, list[type]]:
    """A pickled value and the classes in it: the trunk's has no name to import it by."""
    written, places = io.BytesIO(), dict[type, int]()

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: object) -> int | None:
            return places.setdefault(part, len(places)) if isinstance(part, type) else None

    Pickler(written, pickle.HIGHEST_PROTOCOL).dump(value)
    return written.getvalue(), [*places]


def _read(written: bytes, classes: list[type]) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, place: Any) -> type:
            return classes[place]

    return Unpickler(io.BytesIO(written)).load()


def _shared_copies(make: Callable[[], Any], *key: object) -> Callable[[], Any]:
    """Like `copies_of`, of what the first process of a session that needs it makes."""
    if MADE_ONCE not in os.environ:
        return copies_of(make())
    path = Path(os.environ[MADE_ONCE]).parent / "composed" / sha256(repr(key).encode()).hexdigest()
    trunk = OmegaConf.get_type(ConfigStore.instance().repo["trunk.yaml"].node)
    if path.exists():
        written, names = pickle.loads(path.read_bytes())
        classes = [pkgutil.resolve_name(name) if name else trunk for name in names]
    else:
        written, classes = _written(make())
        names = ["" if one is trunk else f"{one.__module__}:{one.__qualname__}" for one in classes]
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickle.dumps((written, names)))
        partial.rename(path)
    return lambda: _read(written, classes)


_known: dict[tuple[object, ...], Callable[[], tuple[Any, Any]]] = {}


def _once(make: Callable[[], tuple[Any, Any]], *key: object) -> tuple[Any, Any]:
    """Composes once and returns copies, since composing takes a third of a second."""
    if not _is_ours() or any("trusted" in str(part) for part in key):
        return make()
    ours = [pair for pair in os.environ.items() if pair[0].startswith("PIPELINE_")]
    key = (*key, *sorted(ours))
    if key not in _known:
        _known[key] = copies_of(make())
    return _known[key]()


def composed(*overrides: str, verb: str | None = None) -> DictConfig:
    """The configuration as Hydra passes it to the pipeline, with a verb's defaults or all."""

    def make() -> tuple[DictConfig, DictConfig]:
        own = _composed_for(overrides, None if verb is None else (verb,))
        HydraConfig.instance().set_config(own)
        with open_dict(own):
            del own["hydra"]
        return own, HydraConfig.instance().cfg

    own, HydraConfig.instance().cfg = _once(make, "composed", overrides, verb)
    return own


def compose_once() -> None:
    """Makes commands of this process skip composing just to read `hydra.mode`, if it is not set."""
    itself = Hydra.get_mode

    def get_mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        may_be_set = project_folder() or any("hydra" in word for word in sys.argv[1:])
        return itself(hydra, config_name, overrides) if may_be_set else None

    Hydra.get_mode = get_mode  # type: ignore[method-assign]


def compile_plainly() -> None:
    """Lets XLA compile without optimising, in this process alone; `make stress` optimises."""
    if SHARE not in os.environ:
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"


def trace_plainly() -> None:
    """Turns off TensorFlow's graph optimisation in this process, where it costs more than it saves.

    Commands in fresh processes and `make stress` optimise graphs, as users' runs do.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and SHARE not in os.environ:
        tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@cache  # a forked worker has what its fork server has parsed
def parse_once() -> None:
    """Caches parsed files, since parsing takes a fifth of the time of composing."""
    known: dict[tuple[object, ...], Callable[[], Any]] = {}
    itself = OmegaConf.load

    def load(file: Any) -> Any:
        if not hasattr(file, "fileno"):
            return itself(file)
        about = os.fstat(file.fileno())
        key = (file.name, about.st_ino, about.st_mtime_ns, about.st_size)
        if key not in known:
            known[key] = copies_of(itself(file))
        return known[key]()

    OmegaConf.load = load  # type: ignore[method-assign]


@cache
def choose_once() -> None:
    """Makes Hydra keep what it composes from a choice of packaged files: most of its time.

    It sets the values of a command line in a copy. All processes of a session share what is kept.
    """
    known: dict[tuple[object, ...], Any] = {}
    bases: dict[int, tuple[DictConfig, Callable[[], DictConfig]]] = {}
    join = ConfigLoaderImpl._compose_config_from_defaults_list
    list_files = config_loader_impl.create_defaults_list
    interpolations = defaults_list._create_interpolation_map

    def list_once(repo: Any, config_name: str, overrides_list: list[Any], **how: bool) -> Any:
        places = {one.path for one in repo.get_sources() if one.scheme() == "file"}
        trunk = ConfigStore.instance().repo.get("trunk.yaml")

        def list_now() -> Any:
            return list_files(repo, config_name, overrides_list, **how)

        if not places <= {str(CONF)} or trunk is None:
            return list_now()
        values = Overrides(repo, overrides_list).config_overrides
        choices = [one.input_line for one in overrides_list if one not in values]
        key = (config_name, *map(str, trunk.node.defaults), *choices, *how.items())
        if key not in known:
            known[key] = _shared_copies(list_now, "files", *key)()
        return dataclasses.replace(known[key], config_overrides=values)

    def join_once(loader: Any, defaults: list[Any], repo: Any) -> DictConfig:
        keys = [key for key, one in known.items() if one.defaults is defaults]
        if not keys:
            return join(loader, defaults, repo)
        return _copied(keys[0], lambda: _joined(join, loader, defaults, repo))

    def deepcopy(base: DictConfig) -> DictConfig:
        """Copies what a `Composer` has composed from a choice of files."""
        if id(base) not in bases:
            bases[id(base)] = (base, copies_of(base))
        return bases[id(base)][1]()

    compose_module.copy = SimpleNamespace(deepcopy=deepcopy)  # type: ignore[attr-defined]
    # A quarter of composing: what `${…}` in a list of defaults may refer to. Ours have none.
    defaults_list._create_interpolation_map = lambda overrides, defaults, self_added: (
        interpolations(overrides, defaults, self_added)
        if "${" in str(defaults)
        else OmegaConf.create()
    )
    config_loader_impl.create_defaults_list = list_once
    # Interpolations are parsed anew wherever one is met.
    omegaconf.base.parse = omegaconf._utils.parse = cache(omegaconf.base.parse)  # type: ignore
    ConfigLoaderImpl._compose_config_from_defaults_list = join_once  # type: ignore[method-assign]


_kept: dict[tuple[object, ...], Callable[[], DictConfig]] = {}


def _copied(key: tuple[object, ...], make: Callable[[], DictConfig]) -> DictConfig:
    if key not in _kept:
        _kept[key] = _shared_copies(make, *key)
    return _kept[key]()


def _joined(
    join: Callable[..., DictConfig], loader: Any, files: list[Any], repo: Any
) -> DictConfig:
    """Joins files as Hydra does; those that most choices begin with, up to the trunk, once."""
    paths = [one.config_path for one in files]
    if "trunk" not in paths:  # Hydra's own help
        return join(loader, files, repo)
    count = paths.index("trunk") + 1
    trunk = ConfigStore.instance().repo["trunk.yaml"].node
    key = ("start", *map(str, trunk.defaults), *map(str, files[:count]))
    joined = _copied(key, lambda: join(loader, files[:count], repo))
    try:
        with flag_override(joined, "no_deepcopy_set_nodes", True):
            for one in files[count:]:
                joined.merge_with(loader._load_single_config(default=one, repo=repo).config)
    except OmegaConfBaseException:  # let Hydra raise its own error
        return join(loader, files, repo)
    _without_defaults(joined)
    return joined


def _without_defaults(joined: Any) -> None:
    """Removes the lists of defaults that came with files, as Hydra does in the end."""
    if not OmegaConf.is_dict(joined) or joined._is_missing() or joined._is_none():
        return
    with flag_override(joined, ["readonly", "struct"], False):
        if joined._get_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS"):
            joined._set_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS", None)
            joined.pop("defaults", None)
    for _, part in joined.items_ex(resolve=False):
        _without_defaults(part)


def configured(*overrides: str) -> Config:
    """The checked configuration for these overrides, `run_id=…` of a verb among them."""
    run_id = [word.partition("=")[2] for word in overrides if key_of(word) == "run_id"]
    words = [word for word in merged(overrides) if key_of(word) != "run_id"]

    def make() -> tuple[Config, None]:
        before = api.compose_words
        api.compose_words = _composed_for if _is_ours() else before
        try:
            return compose(*words), None
        finally:
            api.compose_words = before

    config = _once(make, "configured", *words)[0]
    return dataclasses.replace(config, run_id=run_id[-1]) if run_id else config


def of_data(leaf: Mapping[str, Any], name: str, data_dir: Path, **split: Any) -> Config:
    """A configuration with this leaf as the data set `name`; `split` are keys of `preprocess`."""
    names = trusted()
    config = configured()
    trust(names)  # composing trusts only what its words name
    return dataclasses.replace(
        config,
        dataset=dict(leaf),
        choices=dataclasses.replace(config.choices, dataset=name),
        data_dir=str(data_dir),
        preprocess=dataclasses.replace(config.preprocess, **split),
    )


def _composed_for(words: Sequence[str], of: tuple[str, ...] | None = ()) -> DictConfig:
    """The configuration that Hydra composes with the defaults of these verbs, None for all.

    Words that only change values are composed like those of a job, in a tenth of the time.
    """
    register(requests(), of=of)
    if _is_ours():
        composer, parser = _composer(of)
        if not any(one.is_sweep_override() for one in parser.parse_overrides([*words])):
            return composer.compose(words)
    return compose_words(words)


@cache
def _composer(of: tuple[str, ...] | None) -> tuple[Composer, OverridesParser]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF), job_name="pipeline"):
        loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("config", [], run_mode=RunMode.RUN)
    return Composer(loader, master), OverridesParser.create(config_loader=loader)


def carried_out(name: str, *overrides: str, folder: Path) -> Any:
    """Runs the verb `name` with these overrides, prints its result and returns it."""
    verb, whole = verbs()[name], composed(*overrides, verb=name)
    if verb.of_record:
        refuse_settings_of_a_run(overrides, name)
    request = verb.request and validate_request(whole, name, verb.request)
    value = verb.carry_out(validate(whole), request, folder)
    verb.print(value, request)
    return value


def results(stdout: str) -> dict[str, str]:
    """The values in the last line of `run`."""
    return dict(word.split("=", 1) for word in stdout.splitlines()[-1].split(" "))


_default_stores: list[str] = []  # of the folders that are entered now, the outermost first


@contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Makes a folder the current one, and the store in it the default.

    The store has its absolute path: MLflow keeps one connection per address in a process. Within
    another such folder, the store of that one is the default again afterwards.
    """
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    _default_stores.append(f"sqlite:///{folder}/mlflow.db")
    os.environ["MLFLOW_TRACKING_URI"] = _default_stores[-1]
    try:
        yield folder
    finally:
        _default_stores.pop()
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow itself sets it too
        if _default_stores:
            os.environ["MLFLOW_TRACKING_URI"] = _default_stores[-1]
        os.chdir(before)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unread(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `python -m pipeline …` printing into a pipe that nobody reads, as after `| head`."""
    return pipeline(*arguments, cwd=cwd, before=_leave_unread)


def _leave_unread() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115, as a new process has


def fresh_unread(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Like `unread`, in a new process."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=cwd,
            env=environment() | {"PYTHONUNBUFFERED": ""},  # it is the rest that breaks
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=180,
        )
