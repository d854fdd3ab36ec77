"""Rules that keep the code as it was meant, checked on its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pipeline"
FILES = sorted(PACKAGE.rglob("*.py"))
PURE = ("data", "preprocess", "augment", "models", "metrics", "plots", "evaluate")
SLOW = {"keras", "tensorflow", "sklearn", "matplotlib", "mlflow"}
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 250, 50, 6


def name_of(path: Path) -> str:
    """`pipeline/tracking/store.py` → `pipeline.tracking.store`."""
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
    assert {"pipeline.config", "pipeline.tracking", "pipeline.tracking.store"} <= TREES.keys()
    assert {f"pipeline.{name}" for name in PURE} <= TREES.keys()


def test_mlflow_is_imported_in_the_tracking_package_alone() -> None:
    importers = {module for module, tree in TREES.items() if "mlflow" in packages(imported(tree))}
    assert importers
    assert all(f"{module}.".startswith("pipeline.tracking.") for module in importers)


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
    pure = {f"pipeline.{name}" for name in (*PURE, "errors", "rules")} | {"pipeline"}
    assert own <= pure


def test_what_checks_a_configuration_imports_no_slow_library() -> None:
    checked = reached_from(
        "pipeline.__main__",
        "pipeline.config",
        *(f"pipeline.{name}" for name in ("datasets", "models", "augment", "metrics", "plots")),
    )
    assert {"pipeline.explain", "pipeline.data", "pipeline.sources"} <= checked
    slow = {
        module: found
        for module in checked
        if (found := packages(imported(TREES[module], into_functions=False)) & SLOW)
    }
    assert slow == {}


def test_ingesting_and_preprocessing_import_neither_tensorflow_nor_mlflow() -> None:
    for module in reached_from("pipeline.stages"):
        used = packages(imported(TREES[module], into_functions=False))
        assert used & {"keras", "tensorflow", "mlflow"} == set(), module


def test_the_errors_and_the_values_depend_on_no_other_module_of_ours() -> None:
    for module in ("pipeline.errors", "pipeline.data"):
        assert "pipeline" not in packages(imported(TREES[module]))


def test_no_module_is_a_drawer_for_everything() -> None:
    names = {module.rpartition(".")[2] for module in TREES}
    assert names & {"utils", "util", "helpers", "helper", "common", "misc"} == set()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_longer_than_250_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_no_function_is_longer_than_50_lines() -> None:
    long = {
        name: length
        for name, node in functions()
        if (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert long == {}


def test_no_function_takes_more_than_six_parameters() -> None:
    greedy = {}
    for name, node in functions():
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = sum(argument.arg not in ("self", "cls") for argument in given)
        if count > MOST_PARAMETERS:
            greedy[name] = count
    assert greedy == {}


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
