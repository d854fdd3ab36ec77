"""Rules that keep the code as it was meant, checked on its syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import pipeline
from pipeline.config.schema import Config
from pipeline.tracking import values
from pipeline.verbs import requests

PACKAGE = Path(__file__).parents[1] / "pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))
SLOW = {"keras", "tensorflow", "sklearn", "matplotlib", "mlflow"}
PURE = (
    "data.values",
    "data.grouping",
    "data.polarity",
    "data.split",
    "training.augment",
    "training.models",
    "training.pieces",
    "evaluation.intervals",
    "evaluation.paired",
    "evaluation.metrics",
    "evaluation.drift",
    "evaluation.labels",
    "evaluation.plots",
    "evaluation.slices",
    "evaluation.evaluate",
)
# Each room with those whose modules its own may import.
ALLOWED = {
    "system": set(),
    "config": {"system"},
    "data": {"config", "system"},
    "evaluation": {"data", "config", "system"},
    "training": {"evaluation", "data", "config", "system"},
    "tracking": {"training", "data", "config", "system"},
    "libraries": {"tracking", "system"},
    "reports": {"tracking", "evaluation", "data", "config", "system"},
    "run": {"reports", "tracking", "evaluation", "training", "data", "config", "system"},
    "sweeps": {
        *("libraries", "run", "reports", "tracking", "evaluation", "training"),
        *("data", "config", "system"),
    },
    "verbs": {
        *("libraries", "sweeps", "run", "reports", "tracking", "evaluation", "training"),
        *("data", "config", "system"),
    },
    "api": {
        *("libraries", "verbs", "run", "reports", "tracking", "evaluation", "training"),
        *("data", "config", "system"),
    },
    "__main__": {"verbs", "libraries", "tracking", "config", "system"},
}


def name_of(path: Path) -> str:
    """`pipeline/tracking/client.py` → `pipeline.tracking.client`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def nodes(tree: ast.AST, *, into_functions: bool = True) -> Iterator[ast.AST]:
    """All nodes that are executed, depth first; what only a type checker reads is left out."""
    for child in ast.iter_child_nodes(tree):
        if only_for_types(child):
            for statement in child.orelse:  # type: ignore[attr-defined]
                yield from nodes(ast.Module([statement], []), into_functions=into_functions)
            continue
        yield child
        if into_functions or not isinstance(child, ast.FunctionDef):
            yield from nodes(child, into_functions=into_functions)


@cache
def imported(tree: ast.AST, *, into_functions: bool = True) -> frozenset[str]:
    """The modules, and the names in modules, that a tree imports."""
    found: set[str] = set()
    for node in nodes(tree, into_functions=into_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def packages(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def reached_from(*modules: str) -> set[str]:
    """The project's modules that importing these brings in."""
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in TREES and module not in reached:
            reached.add(module)
            waiting += imported(TREES[module], into_functions=False)
    return reached


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}:{node.name}", node


def test_the_files_of_the_package_are_found() -> None:
    assert {
        "pipeline.config.schema",
        "pipeline.tracking",
        "pipeline.tracking.client",
    } <= TREES.keys()
    assert {f"pipeline.{name}" for name in PURE} <= TREES.keys()


def test_mlflow_is_imported_in_six_files_at_most_and_all_of_them_track() -> None:
    importers = mlflow_importers()
    assert importers
    assert {room_of(module) for module in importers} == {"tracking"}
    assert len(importers) <= 6, importers


@cache
def mlflow_importers() -> set[str]:
    return {module for module, tree in TREES.items() if "mlflow" in packages(imported(tree))}


@cache
def methods_of_mlflows_client() -> set[str]:
    """Read from its source, since importing MLflow takes seconds."""
    found = find_spec("mlflow")
    assert found is not None
    assert found.origin is not None
    source = (Path(found.origin).parent / "tracking" / "client.py").read_text(encoding="utf-8")
    [client] = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "MlflowClient"
    )
    return {node.name for node in client.body if isinstance(node, ast.FunctionDef)} - {"__init__"}


# What a run of MLflow's says of itself, as `run.info.status` or `run.data.tags`.
OF_MLFLOWS_RUN = re.compile(
    r"\b(info|data|inputs|outputs)\.(run_id|run_name|experiment_id|status|start_time|end_time"
    r"|artifact_uri|lifecycle_stage|metrics|params|tags|dataset_inputs|model_outputs)$|\brun\.(info|data)$"
)


def uses_of_mlflow(tree: ast.AST, methods: set[str]) -> set[str]:
    """Attributes that only MLflow's client and its runs have."""
    found = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {use for use in found if use.split(".")[-1] in methods or OF_MLFLOWS_RUN.search(use)}


def test_only_the_files_that_import_mlflow_call_its_client_and_look_into_its_runs() -> None:
    methods = methods_of_mlflows_client()
    assert {"get_run", "set_tag", "log_batch", "tracking_uri"} <= methods
    importers = mlflow_importers()
    assert uses_of_mlflow(TREES["pipeline.tracking.client"], methods)
    found = {
        module: uses
        for module, tree in TREES.items()
        if module not in importers and (uses := uses_of_mlflow(tree, methods))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("def f(client, run_id):\n    client.set_tag(run_id, 'a', 'b')", True),
        ("def f(store):\n    return store.tracking_uri", True),
        ("def f(run):\n    return run.info.status", True),
        ("def f(run):\n    about = run.info\n    return about.run_id", True),
        ("def f(get):\n    return get('a').data.tags['error']", True),
        ("def f(log, array):\n    log.info('a')\n    return array.data", False),
        ("def f(run):\n    return run.tags, run.metrics, run.status", False),
    ],
)
def test_what_uses_mlflow_is_told_from_what_does_not(code: str, is_found: bool) -> None:
    assert bool(uses_of_mlflow(ast.parse(code), methods_of_mlflows_client())) is is_found


def test_mlflows_names_and_grammar_stand_in_the_tracking_room_alone() -> None:
    texts = {
        (module, node.value)
        for module, tree in TREES.items()
        if room_of(module) != "tracking"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    docs = {
        node.value.value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    assert texts
    foreign = ("attributes.", "tags.`", "models:/")
    assert {(module, text) for module, text in texts if text.startswith(foreign)} == set()
    variables = {(module, text) for module, text in texts if "MLFLOW_" in text}
    assert {(module, text) for module, text in variables if text not in docs} == set()


# Not names of our tags: MLflow's modules and class, its database, a checkpoint, and Hydra's tag.
LIKE_TAGS = {"mlflow.store.db.utils", "mlflow.tensorflow", "mlflow.MlflowClient(", "mlflow.db"}
LIKE_TAGS |= {"best.keras", "log"}
HAS_TAGS = re.compile(r"(.*\.)?_?tags")  # the name of what holds tags, as in `run.data.tags`


def tags_spelt_out(tree: ast.AST, known: set[str]) -> set[str]:
    """Names of tags that are written as text: those `known`, and any by which tags are read or set.

    One of `known` that ends with a dot or a slash is the beginning of names.
    """
    beginnings = ("mlflow.", *(name for name in known if name[-1] in "./"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    texts = {text for text in texts if isinstance(text, str)}
    spelt = {text for text in texts if text in known or text.startswith(beginnings)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and HAS_TAGS.fullmatch(ast.unparse(node.value)):
            spelt |= texts_in([node.slice])
        elif isinstance(node, ast.Compare) and HAS_TAGS.fullmatch(ast.unparse(node.comparators[0])):
            spelt |= texts_in([node.left])
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if HAS_TAGS.fullmatch(called.removesuffix(".get")) and called.endswith(".get"):
                spelt |= texts_in(node.args[:1])
            given = [one.value for one in node.keywords if one.arg == "tags"]
            given += node.args if called.endswith("log_tags") else []
            spelt |= texts_in(key for one in given for key in keys_in(one))
    return spelt - LIKE_TAGS


def keys_in(node: ast.AST) -> Iterator[ast.AST]:
    for part in ast.walk(node):
        if isinstance(part, ast.Dict):
            yield from filter(None, part.keys)
        elif isinstance(part, ast.DictComp):
            yield part.key


def texts_in(nodes: Iterable[ast.AST]) -> set[str]:
    """The texts among nodes, without those that are parts of other texts."""
    return {
        node.value for node in nodes if isinstance(node, ast.Constant) and type(node.value) is str
    }


def test_the_names_of_tags_and_statuses_stand_in_one_file_alone() -> None:
    names = [name for node in TREES["pipeline.tracking.values"].body for name in defined(node)]
    texts = {getattr(values, name) for name in names if not name.startswith("_")}
    texts = {text for text in texts if isinstance(text, str)} - {values.PREDICTIONS}
    known = {text for text in texts if re.fullmatch(r"[a-z0-9_]+[./][\w.]*", text)}
    known |= set(values.Status)
    assert {values.FINGERPRINT, values.HARDWARE, values.CACHE} <= known
    spelt = {
        (module, text)
        for module, tree in TREES.items()
        if module != "pipeline.tracking.values"
        for text in tags_spelt_out(tree, known)
    }
    assert spelt == set()


@pytest.mark.parametrize(
    ("code", "spelt"),
    [
        ("A = 'mlflow.runColor'", {"mlflow.runColor"}),
        ("def f(run):\n    return run.tags['colour']", {"colour"}),
        ("def f(run):\n    return run.data.tags.get('colour', '')", {"colour"}),
        ("def f(tags):\n    return 'colour' in tags", {"colour"}),
        ("def f(log):\n    log.log_tags({'colour': 'red'} | {BLUE: 'x'})", {"colour"}),
        ("Q = Query(tags={'colour': 'red', SHADE: True})", {"colour"}),
        ("A = 'data.source'", {"data.source"}),
        ("A = f'hardware.{name}'", {"hardware."}),
        ("A = 'hardware.cpu'", {"hardware.cpu"}),
        ("def f(run):\n    return run.tags[COLOUR], run.params['colour'], 'colour'", set()),
    ],
)
def test_a_tag_that_is_spelt_out_is_found(code: str, spelt: set[str]) -> None:
    assert tags_spelt_out(ast.parse(code), {"data.source", "hardware."}) == spelt


def test_what_is_known_of_runs_costs_no_import_of_mlflow() -> None:
    for module in reached_from("pipeline.tracking.values", "pipeline.tracking.lineage"):
        used = packages(imported(TREES[module], into_functions=False))
        assert used & {"keras", "tensorflow", "mlflow"} == set(), module


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_reaches_for_no_disk_network_or_tracking(module: str) -> None:
    tree = TREES[f"pipeline.{module}"]
    forbidden = {"pathlib", "os", "io", "shutil", "tempfile", "glob", "subprocess", "socket"}
    forbidden |= {"requests", "urllib", "http", "mlflow", "sqlalchemy"}
    assert packages(imported(tree)) & forbidden == set()
    calls = [node.func for node in nodes(tree) if isinstance(node, ast.Call)]
    names = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
    assert names & {"open", "print", "input", "exec", "eval", "__import__"} == set()
    assert names & {"savefig", "save", "savez", "load", "memmap", "tofile", "fromfile"} <= (
        {"load"} if "lazy_loader" in imported(tree) else set()
    )


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_uses_none_of_the_modules_that_do_touch_the_disk(module: str) -> None:
    own = {name for name in imported(TREES[f"pipeline.{module}"]) if name in TREES}
    also = ("system.errors", "system.imports", "system.tables", "config.rules")
    pure = {f"pipeline.{name}" for name in (*PURE, *also)}
    rooms = {name.rpartition(".")[0] for name in pure}
    assert own <= pure | rooms


# Packages that reach for disk, network, processes or a store, and what of them does not.
OUTSIDE = {
    *("os", "shutil", "tempfile", "glob", "mmap", "filelock", "gzip", "zipfile", "tarfile"),
    *("socket", "select", "requests", "urllib", "http", "uvicorn", "subprocess", "multiprocessing"),
    *("signal", "psutil", "resource", "ctypes", "faulthandler", "fcntl", "getpass", "joblib"),
    *("mlflow", "sqlalchemy", "alembic", "optuna.storages", "optuna.load_study"),
    *("open", "numpy.load", "numpy.save", "numpy.savez", "numpy.memmap"),
    *("numpy.lib.format.open_memmap", "sqlite3", "bz2.open", "lzma.open", "h5py.File"),
    *("pyarrow.parquet.ParquetFile", "pyarrow.parquet.ParquetWriter", "PIL.ImageFont.truetype"),
    *("keras.models.load_model", "keras.saving.load_model", "sklearn.datasets"),
    *("keras.callbacks.TensorBoard", "jinja2.FileSystemLoader", "omegaconf.OmegaConf.load"),
    *("hydra.compose", "hydra.main", "importlib.metadata", "importlib.util.find_spec", "pkgutil"),
    *("inspect.getsourcefile", "platform"),
}
INSIDE = {
    *("os.environ", "os.fspath", "os.fsencode", "os.fsdecode", "os.sep", "os.pathsep"),
    "os.path.abspath",  # as Path.absolute
    *("os.devnull", "os.cpu_count", "os.sched_getaffinity", "os.getpid", "os.PathLike"),
    *("os.SEEK_END", "os.O_APPEND", "mmap.MADV_DONTNEED", "platform.python_version"),
    *("tarfile.BLOCKSIZE", "tarfile.TarInfo", "zipfile.ZipInfo", "zipfile.BadZipFile"),
    *("zipfile.ZIP_STORED", "zipfile.ZIP_DEFLATED", "zipfile.ZIP_BZIP2", "zipfile.ZIP_LZMA"),
    *("urllib.parse", "sqlalchemy.make_url", "sqlalchemy.exc", "signal.Signals"),
    *("mlflow.exceptions", "mlflow.entities", "mlflow.protos", "requests.exceptions"),
    *("requests.RequestException", "requests.ConnectionError", "requests.Timeout"),
}
METHODS = {  # of paths, files, models and processes that reach outside
    *("read_text", "write_text", "read_bytes", "write_bytes", "exists", "mkdir", "stat", "lstat"),
    *("unlink", "iterdir", "glob", "rglob", "is_file", "is_dir", "is_symlink", "touch", "rename"),
    *("resolve", "readlink", "rmdir", "chmod", "symlink_to", "expanduser", "cwd", "home", "walk"),
    *("samefile", "hardlink_to", "open", "tofile", "fromfile", "load_weights", "save_weights"),
    *("save", "savefig", "connect", "execute"),
    *("launch", "terminate", "kill", "communicate", "send_bytes", "recv_bytes"),  # of processes
}
# The modules of each room that reach outside themselves; in all others no line does.
TOUCHING = {
    "__main__": "",
    "config": "allowed compose named_runs search_path trusted",
    "data": "archives cache content datasets embedded exclusion files load packing places sources",
    "reports": "template write",
    "sweeps": "launch manifest one_job pool study sweep worker",
    "system": "databases files folders processes secrets terminal",
    "tracking": "client delivery journal lifecycle lineage models recording registry runs ui "
    "values",
    "training": "check saved checkpoint programs pretrained train",
    "verbs": "__init__ audit.command compare.command doctor.checks doctor.leftovers doctor.store "
    "predict.command predict.sheet predict.writers resume.command serve.command",
}


@cache
def names_in(module: str, tree: ast.Module) -> dict[str, str]:
    """What the names that a module imports and defines stand for: `np` → `numpy`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or packages({alias.name}).pop()] = (
                    alias.name if alias.asname else packages({alias.name}).pop()
                )
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            names |= dict(zip(targets_of(node), lazily_imported(node.value), strict=False))
    own = {node.name for node in tree.body if hasattr(node, "name")}
    return names | {name: f"{module}.{name}" for name in own}


@cache
def modules_in(tree: ast.Module) -> frozenset[str]:
    """The names of modules that are imported as such: `np`."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import))
    return frozenset(alias.asname or alias.name for node in imports for alias in node.names)


def lazily_imported(value: ast.expr) -> list[str]:
    """The modules behind `parquet, pyarrow = Lazy("pyarrow.parquet"), Lazy("pyarrow")`."""
    calls = value.elts if isinstance(value, ast.Tuple) else [value]
    return [
        call.args[0].value
        for call in calls
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in {"Lazy", "lazy.load", "lazy_loader.load"}
        and isinstance(call.args[0], ast.Constant)
    ]


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All below a node but annotations and types that are compared with: caught or `isinstance`."""
    compares = isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", *["type"] * isinstance(node, ast.ExceptHandler)):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children[:1] if compares and field == "args" else children:
            if isinstance(child, ast.AST) and not only_for_types(child):
                yield child
                yield from executed(child)


def parts(module: str) -> Iterator[tuple[str, ast.AST]]:
    """The functions and methods of a module by name, and under its own name the rest of it."""
    rest: list[ast.AST] = []
    function = ast.FunctionDef | ast.AsyncFunctionDef
    for node in TREES[module].body:
        if isinstance(node, function):
            yield f"{module}.{node.name}", node
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, function):
                    yield f"{module}.{node.name}.{part.name}", part
                else:
                    rest.append(part)
        elif not isinstance(node, ast.Import | ast.ImportFrom) and not only_for_types(node):
            rest.append(node)
    yield module, ast.Module(rest, [])  # type: ignore[arg-type]


def used(module: str, part: ast.AST) -> set[str]:
    """The whole names of what a part of a module uses; `.name` for methods that it calls."""
    names, modules, found = names_in(module, TREES[module]), modules_in(TREES[module]), set()
    for node in executed(part):
        if isinstance(node, ast.Name | ast.Attribute):
            # Of `os.fsencode(path).hex` only `os.fsencode`, which is a node of its own.
            head, dot, rest = ast.unparse(node).partition(".")
            if re.fullmatch(r"[\w.]*", rest):
                found.add(f"{names.get(head, head)}{dot}{rest}")
        is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        # A function of a module (`np.array`) is no method; those of `Image` read memory, too.
        head = ast.unparse(node.func).partition(".")[0] if is_method else ""
        if is_method and head not in {*modules, "Image"} and names.get(head) not in TREES:
            found.add(f".{node.func.attr}")
            if module in mlflow_importers() and node.func.attr in methods_of_mlflows_client():
                found.add(f"mlflow.MlflowClient.{node.func.attr}")  # a request to the store
    if "io.BytesIO" in found:  # a figure goes to memory
        found -= {".save", ".savefig"}
    if "pyarrow.BufferReader" in found:  # a table is in memory
        found.discard("pyarrow.parquet.ParquetFile")
    return found


def starts(name: str, beginnings: set[str]) -> bool:
    words = name.split(".")
    return any(".".join(words[:end]) in beginnings for end in range(1, len(words) + 1))


def is_outside(name: str) -> bool:
    if name.startswith("."):
        return name[1:] in METHODS
    return starts(name, OUTSIDE) and not starts(name, INSIDE) and (name == "open" or "." in name)


@cache
def all_used() -> dict[str, tuple[str, set[str]]]:
    """The module of each part and what it uses."""
    return {name: (module, used(module, part)) for module in TREES for name, part in parts(module)}


def reaching() -> set[str]:
    """The functions and methods that reach outside, by themselves or by what they call."""
    found = {name for name, (_, uses) in all_used().items() if any(map(is_outside, uses))}
    imports = {module: imported(tree) | {module} for module, tree in TREES.items()}
    while True:
        methods: dict[str, set[str]] = {}  # of classes, with the modules of these
        for name in found:
            module, rest = all_used()[name][0], name.removeprefix(all_used()[name][0])
            if rest.count(".") == 2:
                methods.setdefault(f".{rest.rpartition('.')[2]}", set()).add(module)
        called = found | {  # a class is called by its name
            name.rpartition(".")[0] for name in found if name.endswith((".__init__", ".__enter__"))
        }
        more = {
            name
            for name, (module, uses) in all_used().items()
            if name not in found
            and any(
                (use in called and use not in TREES) or methods.get(use, set()) & imports[module]
                for use in uses
            )
        }
        if not more:
            return found
        found |= more


def test_the_modules_that_reach_outside_by_themselves_are_known() -> None:
    found = {module for module, uses in all_used().values() if any(map(is_outside, uses))}
    names = {module.removeprefix("pipeline.") for module in found}
    known = {
        f"{room}.{name}".removesuffix(".__init__").rstrip(".")
        for room, listed in TOUCHING.items()
        for name in listed.split() or [""]
    }
    assert names - known == set(), "move what reaches outside to a module that does already"
    assert known - names == set(), "these touch nothing any more"


def test_most_lines_of_functions_need_neither_disk_network_process_nor_store() -> None:
    """Counted are the lines of functions alone: no import, blank line between them or constant."""
    sizes = {
        name: part.end_lineno - part.lineno + 1
        for module in TREES
        for name, part in parts(module)
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    outside = reaching()
    # What looks for processes, or starts them, by what it calls.
    assert {
        "pipeline.tracking.heartbeat.pulse",
        "pipeline.sweeps.launch.open_workers",
        "pipeline.sweeps.running.SweepJobs.carry_out",
    } <= outside
    share = 1 - sum(sizes.get(name, 0) for name in outside) / sum(sizes.values())
    print(f"{share:.1%} of {sum(sizes.values()):,} lines are in functions that reach nothing")
    assert share >= 0.61


@pytest.mark.parametrize(
    ("code", "is_pure"),
    [
        ("def f(path):\n    return path.read_text()", False),
        ("def f(path):\n    import numpy as np\n    return np.load(path)", False),
        ("from shutil import rmtree as gone\ndef f(path):\n    gone(path)", False),
        ("import os\nNOW = os.getcwd()", False),
        ("class A:\n    def go(self):\n        with open('x') as f:\n            pass", False),
        ("import os\nPORT = os.environ.get('PORT')", True),
        ("import mlflow\ndef f(run: mlflow.entities.Run) -> None:\n    return run.data", True),
        (
            "import socket\ndef f():\n  try:\n    pass\n  except socket.timeout:\n    pass",
            True,
        ),
        ("def f(figure, path):\n    figure.savefig(path)", False),
        (
            "import io\ndef f(figure):\n    memory = io.BytesIO()\n    figure.savefig(memory)",
            True,
        ),
        ("import keras\ndef f(folder):\n    return keras.callbacks.TensorBoard(folder)", False),
        ("from jinja2 import FileSystemLoader\ndef f(x):\n    FileSystemLoader(x)", False),
        ("from importlib.metadata import version\ndef f():\n    return version('keras')", False),
        ("from hydra import compose as made\ndef f():\n    return made('config')", False),
        ("import h5py\ndef f(path):\n    return h5py.File(path)", False),
        ("parquet = Lazy('pyarrow.parquet')\ndef f(x):\n    parquet.ParquetFile(x)", False),
        (
            "pa, parquet = Lazy('pyarrow'), Lazy('pyarrow.parquet')\n"
            "def f(content):\n    return parquet.ParquetFile(pa.BufferReader(content))",
            True,
        ),
        ("def f(picture, path):\n    picture.save(path)", False),
        ("import tarfile\ndef f(size):\n    return size % tarfile.BLOCKSIZE", True),
    ],
)
def test_what_touches_the_outside_is_told_from_what_does_not(
    code: str, is_pure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TREES, "made_up", ast.parse(code))
    uses = set().union(*(used("made_up", part) for _, part in parts("made_up")))
    assert any(map(is_outside, uses)) is not is_pure


def test_what_checks_a_configuration_imports_no_slow_library() -> None:
    checked = reached_from(
        "pipeline.__main__",
        "pipeline.config.schema",
        "pipeline.data.datasets",
        "pipeline.training.models",
        "pipeline.training.augment",
        "pipeline.evaluation.metrics",
        "pipeline.evaluation.plots",
    )
    assert {"pipeline.config.messages", "pipeline.data.values", "pipeline.data.sources"} <= checked
    slow = {
        module: found
        for module in checked
        if (found := packages(imported(TREES[module], into_functions=False)) & SLOW)
    }
    assert slow == {}


def test_ingesting_and_preprocessing_import_neither_tensorflow_nor_mlflow() -> None:
    verbs = ("pipeline.verbs.ingest", "pipeline.verbs.preprocess")
    for module in reached_from(*verbs, "pipeline.data.load"):
        used = packages(imported(TREES[module], into_functions=False))
        assert used & {"keras", "tensorflow", "mlflow"} == set(), module


def test_the_errors_and_the_values_depend_on_no_other_module_of_ours() -> None:
    for module in ("pipeline.system.errors", "pipeline.data.values"):
        assert "pipeline" not in packages(imported(TREES[module]))


# Tests, or folders of them, whose subject is not one module.
ACROSS = {
    "config/test_documented": "the commands in README, docs and files",
    "end_to_end": "the product as a user has it: command lines, notebook, installation",
    "stress": "the rows of the reliability matrix",
    "test_architecture": "all modules",
    "config/test_conf_files": "the files of conf/ beside the signatures of the builders",
    "data/test_mutations": "damaged files, by every way to read a data set",
    "data/test_public_reports": "folders as in public reports about other loaders",
    "reports/test_shown": "the report in a browser",
    "sweeps/test_stress": "sweeps that are killed and resumed, and their memory",
    "tracking/test_version_before": "a store that the version before has written",
    "training/test_teacher": "distillation, from the setting to the saved model",
    "verbs/test_hostile_models": "hostile models, by every way to load one",
    "verbs/promote/test_served": "promotion where the store is a server",
}


def mirror_of(path: Path) -> str:
    """`pipeline/data/load.py` → `data/test_load`; `pipeline/verbs/__init__.py` → its own name."""
    top = PACKAGE if path.is_relative_to(PACKAGE) else PACKAGE.parent
    name = path.parent.name if path.stem == "__init__" else path.stem.strip("_")
    return (path.relative_to(top).parent / f"test_{name}").as_posix()


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


@cache
def private_names() -> frozenset[str]:
    """The names with an underscore that the package defines, of its modules as of its classes."""
    found = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return frozenset(name for name in found if re.fullmatch(r"_[A-Za-z]\w*", name))


def private_uses(tree: ast.Module) -> Iterator[str]:
    """What a test takes of the package's private names: imported, after a dot, or as a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
            yield from (one.name for one in node.names if re.match("_[A-Za-z]", one.name))
        elif isinstance(node, ast.Attribute):
            if node.attr in private_names() and ast.unparse(node.value) != "self":
                yield node.attr
        elif isinstance(node, ast.Call):
            texts = (one.value for one in node.args if isinstance(one, ast.Constant))
            yield from (
                text
                for text in texts
                if isinstance(text, str)
                and (text in private_names() or re.match(r"pipeline(\.\w+)*\._[a-z]\w*", text))
            )


def test_tests_use_no_private_name_of_the_package() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in TESTS}
    assert PACKAGE.parent / "tests/data/test_packing.py" in trees
    found = {(path.name, name) for path, tree in trees.items() for name in private_uses(tree)}
    assert found == set(), "use what a user can use, or make it public"


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        ("from pipeline.run import _evaluate", {"_evaluate"}),
        ("packing._decode(1)", {"_decode"}),
        ("patch.setattr(packing, '_decode', f)", {"_decode"}),
        ("patch.setattr('pipeline.data.packing._decode', f)", {"pipeline.data.packing._decode"}),
        ("patch.setattr(packing, '_SAMPLE', 1)", {"_SAMPLE"}),
        ("os._exit(0)\nself._forms = 1", set()),
        ("from pipeline.run import run\nrun(config)", set()),
    ],
)
def test_a_private_name_in_a_test_is_found(code: str, taken: set[str]) -> None:
    assert set(private_uses(ast.parse(code))) == taken


def test_the_tests_mirror_the_modules() -> None:
    plugins = [*(PACKAGE.parent / "hydra_plugins").glob("*.py")]
    assert plugins
    modules = {mirror_of(path) for path in (*FILES, *plugins) if path.stem != "__init__"}
    folder = Path(__file__).parent
    tests = {
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("test_*.py")
    }
    assert modules - tests == set(), "these modules have no test file of their own"
    packages = {mirror_of(path) for path in FILES if path.stem == "__init__"}
    across = {name for name in tests if {name, name.partition("/")[0]} & ACROSS.keys()}
    assert tests - modules - packages - across == set(), "these test files are named after nothing"
    known = {name for name in ACROSS if name in tests - modules or (folder / name).is_dir()}
    assert known == ACROSS.keys()


def test_no_module_is_a_drawer_for_everything() -> None:
    names = {module.rpartition(".")[2] for module in TREES}
    assert names & {"utils", "util", "helpers", "helper", "common", "misc"} == set()


def room_of(module: str) -> str:
    """`pipeline.tracking.client` → `tracking`; `pipeline` itself has no room."""
    return module.partition(".")[2].partition(".")[0]


def arrows() -> Iterator[tuple[str, str]]:
    """Each import from a module of one room to a module of another."""
    for module, tree in TREES.items():
        for name in imported(tree) & TREES.keys():
            if room_of(name) and room_of(name) != room_of(module) and room_of(module):
                yield module, name


def test_every_room_imports_only_what_lies_below_it() -> None:
    found = sorted(
        f"{module} -> {name}"
        for module, name in arrows()
        if room_of(name) not in ALLOWED[room_of(module)]
    )
    assert found == []


def test_the_table_of_rooms_names_all_of_them_and_has_no_circle() -> None:
    assert {room_of(module) for module in TREES} - {""} == ALLOWED.keys()
    built: set[str] = set()
    for room, below in ALLOWED.items():
        assert below <= built, room
        built.add(room)


# The Python API repeats the names of what it calls; a metric and its plot share one.
SHARED_NAMES = {*("accuracy", "loss"), *("show", "main")}


def defined(node: ast.stmt) -> list[str]:
    """The classes, functions, constants and named types that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    return [name for name in targets_of(node) if name.lstrip("_")[:1].isupper()]


def targets_of(node: ast.stmt) -> list[str]:
    """The names that a statement assigns to."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [one.id for each in targets if each for one in ast.walk(each) if hasattr(one, "id")]


def test_no_two_public_classes_functions_constants_or_types_have_one_name() -> None:
    found: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        for node in tree.body if module != "pipeline.api" else ():
            for name in defined(node):
                if not name.startswith("_"):
                    found.setdefault(name, set()).add(module)
    assert len(found) > 700
    twice = {name: modules for name, modules in found.items() if len(modules) > 1}
    assert {name: one for name, one in twice.items() if name not in SHARED_NAMES} == {}


def test_the_file_that_tells_the_story_of_a_run_stays_short() -> None:
    assert len((PACKAGE / "run.py").read_text(encoding="utf-8").splitlines()) <= 155


def test_every_public_function_and_class_says_what_it_is_for() -> None:
    silent = [
        f"{module}:{node.name}"
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


# All public functions of these modules take and return what the module says.
GROUPS_OF_BUILDERS = {"pipeline.training.models"}


def annotations(function: ast.FunctionDef) -> str:
    given = (*function.args.args, *function.args.kwonlyargs)
    found = [*(one.annotation for one in given), function.returns]
    return " ".join(ast.unparse(one) for one in found if one)


def test_public_functions_that_take_or_return_arrays_say_of_which_shape_and_dtype() -> None:
    told = re.compile(r"\b(u8|u64|i32|i64|f32|f64|bool)\[|any (shape|dtype)")
    silent = []
    for module, tree in TREES.items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for owner in (tree, *(one for one in classes if not one.name.startswith("_"))):
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                    continue
                if not re.search(r"\b(Array|ndarray|Tensor)\b", annotations(node)):
                    continue
                around = [owner] if owner is not tree or module in GROUPS_OF_BUILDERS else []
                words = [ast.get_docstring(one) or "" for one in (node, *around)]
                if not told.search(" ".join(words)):
                    silent.append(f"{module}:{node.name}")
    assert silent == []


def test_what_comments_and_docstrings_refer_to_exists() -> None:
    keys = {one.name for one in fields(Config)}  # `train.ema` is a key, not a name of train.py
    # The names in each module and class, by its last name.
    known = {"config": {*keys}, "pipeline": set(pipeline.__all__)}
    for module, tree in TREES.items():
        scopes = [(module.rpartition(".")[2], tree.body)]
        scopes += [(node.name, node.body) for node in tree.body if isinstance(node, ast.ClassDef)]
        for scope, body in scopes:
            names = known.setdefault(scope, set())
            names |= {name for node in body for name in (*defined(node), *targets_of(node))}
    files = {"csv", "html", "json", "npy", "py", "txt", "yaml"}
    missing = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for scope, name in re.findall(r"`(?:\w+[./])*(\w+)\.(\w+)(?:\(\))?`", text):
            if (
                scope in known.keys() - keys - requests().keys()
                and name not in known[scope] | files
            ):
                missing.append(f"{path.name}: {scope}.{name}")
        for named in re.findall(r"[\w/]+\.py\b", text):
            places = (path.parent, PACKAGE, PACKAGE.parent)
            if not named.startswith("my_") and not any((here / named).exists() for here in places):
                missing.append(f"{path.name}: {named}")
    assert missing == []
