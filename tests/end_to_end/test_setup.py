"""The files that set the project up say the same thing."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SetUp = Callable[[str], subprocess.CompletedProcess[str]]
EXTRAS = ("dev", "gpu", "pretrained", "bench")
EXTRA_LOCKS = {extra: f"requirements-{extra}.lock" for extra in EXTRAS}
LOCKS = ["requirements.lock", *EXTRA_LOCKS.values()]
PYTHONS = ["3.11", "3.12", "3.13"]


def entries(lock: str) -> list[str]:
    """A lock's requirements, each with its hashes, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    return re.split(r"\n(?=\S)", text.strip())


def pins(lock: str) -> dict[str, set[str]]:
    """Name → its `version ; marker`s in a lock: several where they differ by Python."""
    found = defaultdict(set)
    for entry in entries(lock):
        pin = Requirement(entry.partition(" \\\n")[0])
        found[canonicalize_name(pin.name)].add(f"{pin.specifier} ; {pin.marker}")
    return found


def versions(lock: str, python: str) -> dict[str, str]:
    """Name → version of what a lock installs on Linux under this Python."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
    }
    chosen = {}
    for entry in entries(lock):
        pin = Requirement(entry.partition(" \\\n")[0])
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in chosen, f"{lock} pins {name} twice for Python {python}"
            (specifier,) = pin.specifier
            chosen[name] = specifier.version
    return chosen


def project() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "MLproject").read_text())


def conda() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "conda.yaml").read_text())


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_pins_every_direct_dependency_at_a_version_it_admits(python: str) -> None:
    locked = versions("requirements.lock", python)
    for requirement in map(Requirement, PYPROJECT["dependencies"]):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", EXTRA_LOCKS)
def test_an_extras_lock_pins_its_dependencies_at_versions_they_admit(
    extra: str, python: str
) -> None:
    locked = versions(EXTRA_LOCKS[extra], python)
    for requirement in map(Requirement, PYPROJECT["optional-dependencies"][extra]):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is locked"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", EXTRA_LOCKS.values())
def test_an_extras_lock_holds_all_of_the_first_lock_unchanged(lock: str, python: str) -> None:
    extended, first = versions(lock, python), versions("requirements.lock", python)
    assert {name: extended.get(name) for name in first} == first


def test_the_gpu_lock_adds_nothing_but_nvidias_libraries() -> None:
    added = pins("requirements-gpu.lock").keys() - pins("requirements.lock").keys()
    assert added
    assert {name.split("-")[0] for name in added} == {"nvidia"}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_version_has_a_hash(lock: str) -> None:
    bare = [entry for entry in entries(lock) if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)]
    assert not bare


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.findall(r"://|--(?:extra-)?index|--find-links|--trusted-host", text)


def test_conda_installs_the_lock() -> None:
    (pip,) = (entry["pip"] for entry in conda()["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.lock"]
    assert "pip" in conda()["dependencies"]


def test_condas_python_is_one_exact_version_that_the_project_supports() -> None:
    (version,) = (
        entry.removeprefix("python=")
        for entry in conda()["dependencies"]
        if isinstance(entry, str) and entry.startswith("python=")
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), "pyenv needs all three numbers"
    assert version in SpecifierSet(PYPROJECT["requires-python"])


def test_mlproject_uses_the_conda_environment() -> None:
    assert project()["conda_env"] == "conda.yaml"


def test_every_entry_point_runs_the_verb_of_its_name() -> None:
    for name, entry in project()["entry_points"].items():
        verb = "run" if name == "main" else name
        assert entry["command"].startswith(f"python -m pipeline {verb} --mlproject "), name


def test_every_entry_point_uses_each_of_its_parameters_once_and_no_other() -> None:
    for name, entry in project()["entry_points"].items():
        used = re.findall(r"\{(\w+)\}", entry["command"])
        assert sorted(used) == sorted(entry["parameters"]), name
        assert entry["command"].split()[-1] == "overrides={overrides}", f"{name}: they come last"


def test_an_optional_parameter_defaults_to_what_the_configuration_says() -> None:
    config = yaml.safe_load((ROOT / "conf/config.yaml").read_text())
    for name, entry in project()["entry_points"].items():
        for parameter, declared in entry["parameters"].items():
            if isinstance(declared, dict):
                # MLflow records the seed under the name that is our own: it must be the true one.
                expected = config["seed"] if parameter == "seed" else ""
                assert declared["default"] == expected, f"{name} {parameter}"


def test_every_make_command_in_the_readme_exists() -> None:
    named = set(
        re.findall(r"(?:^|[`$] ?)make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.M)
    )
    assert named
    assert named <= targets()


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+)", listed, flags=re.MULTILINE)) == targets()


def test_make_ui_listens_where_its_command_line_says_and_not_where_the_shell_does() -> None:
    shell = os.environ | {"HOST": "build-machine", "PORT": "80"}
    for words, options in (([], []), (["PORT=5005"], ["--port", "5005"])):
        recipe = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", "ui", *words],
            cwd=ROOT,
            env=shell,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert recipe.splitlines()[-1].split()[2:] == ["-m", "pipeline.tracking.ui", *options]


@pytest.fixture
def set_up(tmp_path: Path) -> SetUp:
    """Runs the set-up in an empty folder, under a Python that runs `preamble` first."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    fake_python = tmp_path / "fake-python"

    def run(preamble: str) -> subprocess.CompletedProcess[str]:
        fake_python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{preamble}\n$2"\n')
        fake_python.chmod(0o755)
        return subprocess.run(
            ["sh", ".ci/setup"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake_python)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 11), (3, 12), (3, 13), (3, 14), (4, 0)])
def test_set_up_refuses_exactly_the_pythons_that_the_project_does(
    set_up: SetUp, tmp_path: Path, version: tuple[int, int]
) -> None:
    # Without ensurepip, so that one whose version is accepted is refused for that.
    done = set_up(
        f"import sys; sys.version_info = {(*version, 7)}; sys.modules['ensurepip'] = None"
    )
    supported = "{}.{}".format(*version) in SpecifierSet(PYPROJECT["requires-python"])
    mend = "lacks its venv module: .*python3-venv" if supported else "is needed: .*PYTHON=python3"
    assert re.fullmatch(rf".*{mend}.*\n", done.stderr), "one line that names the mend"
    assert done.returncode == 2
    assert not (tmp_path / ".venv").exists()


# A Python that makes environments of itself, whose uv notes what it installs and keeps the last
# file that it was given, unless it is broken.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
"-c "*) printf '%s\\n' "$PWD/fake-python" "is 3.11.7, for $PWD" ;;
"-m venv")
    mkdir -p "$3/bin"
    cp fake-python "$3/bin/python"
    cp fake-uv "$3/bin/uv"
    ;;
"-m pip") [ ! -e broken ] ;;
esac
"""
FAKE_UV = """#!/bin/sh
[ ! -e broken ] || exit 1
echo "$*" >> installed
for last; do :; done
cp "$last" given
"""


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str], list[str]]:
    """Runs the set-up for a lock, and returns the locks that it installed."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name, text in (("fake-python", FAKE_PYTHON), ("fake-uv", FAKE_UV)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for lock in LOCKS[:3]:
        (tmp_path / lock).write_text("uv==1\n")

    def run(lock: str) -> list[str]:
        notes = tmp_path / "installed"
        notes.write_text("")
        env = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "fake-python")}
        silent, keyboard = os.pipe()  # which nobody writes to
        words = ["sh", ".ci/setup", lock]
        with os.fdopen(silent), os.fdopen(keyboard, "w"):
            subprocess.run(
                words, cwd=tmp_path, env=env, stdin=silent, capture_output=True, timeout=60
            )
        return [Path(line.split()[-1]).name for line in notes.read_text().splitlines()]

    return run


def test_an_environment_that_is_made_anew_has_what_it_had(
    install: Callable[[str], list[str]], tmp_path: Path
) -> None:
    first, dev, gpu = LOCKS[:3]
    assert [install(lock) for lock in (first, gpu, first, gpu)] == [[first], [gpu], [], []]
    (tmp_path / first).write_text("uv==2\n")  # as another version of the project has it
    assert [install(first), install(gpu)] == [[first, gpu], []]
    shutil.rmtree(tmp_path / ".venv/bin")  # as doctor says
    assert install(dev) == [first, gpu, dev]
    (tmp_path / gpu).unlink()
    assert install(first) == [first, dev]


def test_a_lock_that_cannot_be_installed_leaves_the_environment_to_others(
    install: Callable[[str], list[str]], tmp_path: Path
) -> None:
    first, dev, gpu = LOCKS[:3]
    assert install(first) == [first]
    (tmp_path / "broken").touch()  # as without a network, or on a full disk
    for _ in range(2):
        assert install(gpu) == []
        assert install(first) == []
        assert (tmp_path / ".venv/bin/uv").exists()
    (tmp_path / "broken").unlink()
    assert [install(dev), install(first), install(dev), install(gpu)] == [[dev], [], [], [gpu]]


def test_a_lock_that_another_may_have_damaged_is_added_again(
    install: Callable[[str], list[str]], tmp_path: Path
) -> None:
    first, dev, gpu = LOCKS[:3]
    assert install(dev) == [dev]
    (tmp_path / "broken").touch()
    assert install(gpu) == []
    (tmp_path / "broken").unlink()
    assert [install(first), install(gpu), install(dev)] == [[], [dev, gpu], []]


def test_what_requirements_lock_holds_stays_as_it_is_where_another_lock_is_added(
    install: Callable[[str], list[str]], tmp_path: Path
) -> None:
    first, _, gpu = LOCKS[:3]
    held, added = "uv==1 \\\n    --hash=sha256:1\n", "zlib==2 ; x \\\n    --hash=sha256:2\n"
    (tmp_path / first).write_text(held)
    (tmp_path / gpu).write_text("# made by uv\n" + held + added)
    install(first)
    assert (tmp_path / "given").read_text() == held
    install(gpu)
    assert (tmp_path / "given").read_text() == added
    assert "--force-reinstall --no-deps" in (tmp_path / "installed").read_text()


@pytest.mark.parametrize("lock", LOCKS[:2])
def test_an_environment_of_which_nothing_was_installed_is_made_anew(
    install: Callable[[str], list[str]], tmp_path: Path, lock: str
) -> None:
    (tmp_path / "broken").touch()
    assert install(LOCKS[2]) == []
    (tmp_path / "broken").unlink()
    assert install(lock) == [lock]


def test_an_environment_that_is_linked_belongs_to_another_folder_and_stays(
    install: Callable[[str], list[str]], tmp_path: Path
) -> None:
    first, dev, gpu = LOCKS[:3]
    assert install(dev) == [dev]
    (tmp_path / ".venv").rename(tmp_path / "other")
    (tmp_path / ".venv").symlink_to("other")
    (tmp_path / "other/theirs").touch()
    (tmp_path / dev).write_text("uv==2\n")  # as another commit has it
    for lock in (first, dev, gpu):
        assert install(lock) == []
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        *(".ready", "bin", "theirs")
    ]
    words, env = ["sh", ".ci/setup", gpu], {"PATH": "/usr/bin:/bin", "PYTHON": "./fake-python"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stderr.startswith(".venv is a link to other, which is left as it is: install ")
    assert done.returncode == 2


def imported(folder: str) -> dict[str, Path]:
    """The top-level packages that the files of a folder import, each with one of these files."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_loader.load":
                modules = [ast.literal_eval(node.args[0])]
            found |= {module.partition(".")[0]: path for module in modules}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["pipeline", "hydra_plugins"])
def test_every_package_that_is_imported_is_declared(folder: str) -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in PYPROJECT["dependencies"]}
    provided = packages_distributions()
    foreign = imported(folder).keys() - sys.stdlib_module_names - {"pipeline", "hydra_plugins"}
    assert foreign
    undeclared = {
        name: imported(folder)[name]
        for name in foreign
        if not declared & {canonicalize_name(one) for one in provided.get(name, [])}
    }
    assert undeclared == {}


def test_the_benchmark_installs_into_an_environment_of_its_own(tmp_path: Path) -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "bench"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    setups = [line for line in recipe.splitlines() if ".ci/setup" in line or "pip" in line]
    assert setups == ["sh .ci/setup requirements-bench.lock .venv-bench"]
    assert ".venv/" not in recipe
    assert not {"torch", "jax"} & {entry.partition("==")[0] for entry in entries(LOCKS[1])}
