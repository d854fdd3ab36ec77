"""Rules that keep the code as it was meant, checked on its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))
SLOW = {"keras", "tensorflow", "sklearn", "matplotlib", "mlflow"}
PURE = (
    "data.values",
    "data.split",
    "training.augment",
    "training.models",
    "evaluation.intervals",
    "evaluation.paired",
    "evaluation.metrics",
    "evaluation.plots",
    "evaluation.evaluate",
)
# Each room with those whose modules its own may import.
ALLOWED = {
    "system": set(),
    "config": {"system"},
    "data": {"config", "system"},
    "evaluation": {"data", "config", "system"},
    "training": {"evaluation", "data", "config", "system"},
    "tracking": {"data", "config", "system"},
    "reports": {"tracking", "evaluation", "data", "config", "system"},
    "run": {"reports", "tracking", "evaluation", "training", "data", "config", "system"},
    "sweeps": {
        *("run", "reports", "tracking", "evaluation", "training"),
        *("data", "config", "system"),
    },
    "verbs": {
        *("sweeps", "run", "reports", "tracking", "evaluation", "training"),
        *("data", "config", "system"),
    },
    "__main__": {"verbs", "config", "system"},
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


def imported(tree: ast.AST, *, into_functions: bool = True) -> set[str]:
    """The modules, and the names in modules, that a tree imports."""
    found = set()
    for node in nodes(tree, into_functions=into_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(names: set[str]) -> set[str]:
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
    importers = {module for module, tree in TREES.items() if "mlflow" in packages(imported(tree))}
    assert importers
    assert {room_of(module) for module in importers} == {"tracking"}
    assert len(importers) <= 6, importers


def test_mlflows_names_and_grammar_stand_in_the_tracking_room_alone() -> None:
    texts = {
        (module, node.value)
        for module, tree in TREES.items()
        if room_of(module) != "tracking"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert texts
    foreign = ("mlflow.source", "mlflow.parentRunId", "mlflow.runName", "attributes.", "tags.`")
    assert {(module, text) for module, text in texts if text.startswith(foreign)} == set()


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
    pure = {f"pipeline.{name}" for name in (*PURE, "system.errors", "config.rules")}
    rooms = {name.rpartition(".")[0] for name in pure}
    assert own <= pure | rooms


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
    for module in reached_from("pipeline.verbs.stages"):
        used = packages(imported(TREES[module], into_functions=False))
        assert used & {"keras", "tensorflow", "mlflow"} == set(), module


def test_the_errors_and_the_values_depend_on_no_other_module_of_ours() -> None:
    for module in ("pipeline.system.errors", "pipeline.data.values"):
        assert "pipeline" not in packages(imported(TREES[module]))


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


def test_the_story_of_a_run_is_told_in_about_a_hundred_lines() -> None:
    assert len((PACKAGE / "run.py").read_text(encoding="utf-8").splitlines()) <= 120


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
