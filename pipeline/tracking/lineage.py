"""The lineage of a run: code with uncommitted changes, environment, hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import psutil

from pipeline.system.folders import MADE_BY, STORES
from pipeline.system.processes import cores

ROOT = Path(__file__).resolve().parents[2]  # the checkout, or the packages' folder if installed
PACKAGE = "image-classification-pipeline"
# Options for a patch that `git apply` accepts, whatever the user's settings.
_AS_PATCH = (
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
# New files that a result may depend on; photos, for example, are not code.
NEW_CODE = ("*.py", "*.yaml", "*.yml", "*.toml", "*.lock", "MLproject", "Makefile")
_AT_ONCE = 1_000  # files named to git; a command line is limited
# Folders that Hydra and MLflow fill, in the folder of the project.
_MADE = {"outputs", "multirun", *STORES}
TF_THREADS = "TF_NUM_INTRAOP_THREADS"
NAMED = ("tensorflow", "keras", "mlflow", "hydra-core", "numpy", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class Code:
    """The commit of the code, and the uncommitted changes as a git patch.

    `unreadable` says why git could not tell them, although there is a checkout.
    """

    commit: str | None
    patch: str
    unreadable: str | None = None

    @property
    def patch_sha256(self) -> str:
        """SHA-256 (hex) of the patch: whether two runs had the same uncommitted changes."""
        return hashlib.sha256(self.patch.encode("utf-8", errors="surrogateescape")).hexdigest()


def code_state(root: Path | None = None) -> Code:
    """The state of the git checkout at `root`, with new code files but without ignored files.

    The default is the pipeline's own checkout or, if the pipeline is installed as a package, the
    repository of the current folder, which is the user's project.
    """
    root = root or (ROOT if (ROOT / ".git").exists() else _repository(Path.cwd()))
    if not (root / ".git").exists():
        return Code(commit=None, patch="")
    if shutil.which("git") is None:
        return Code(commit=None, patch="", unreadable="git is not installed")
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
        return Code(commit=commit, patch=_patch(root))
    except subprocess.CalledProcessError as error:
        return Code(commit=None, patch="", unreadable=_last_line(error.stderr))


def _last_line(said: bytes) -> str | None:
    """What git said last, which is often what to do; None if it said nothing: no commit yet."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), None)


@cache  # used by every job of a worker
def environment() -> str:
    """Python, platform and every installed distribution with its version, one per line."""
    installed = {f"{d.metadata['Name']}=={d.version}" for d in distributions()}
    header = f"# Python {platform.python_version()} on {platform.platform()}"
    return "\n".join([header, *sorted(installed, key=str.lower)]) + "\n"


def versions() -> dict[str, str]:
    """Versions of Python, the libraries that results depend on, and the pipeline if installed."""
    known = {"python": platform.python_version()} | {name: version(name) for name in NAMED}
    return known | ({"pipeline": own} if (own := own_version()) else {})


def own_version() -> str | None:
    """The version of the pipeline as a package; None in a checkout that is not installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def hardware() -> dict[str, str]:
    """Host name, processor, cores that this process may use, threads per operation, and memory."""
    return {
        "host": platform.node(),
        "cpu": _processor(),
        "cores": str(cores()),
        "threads": os.environ.get(TF_THREADS) or str(cores()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.1f}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _repository(folder: Path) -> Path:
    """The root of the repository of a folder, or the folder if it is in none."""
    return next((one for one in (folder, *folder.parents) if (one / ".git").exists()), folder)


def _patch(root: Path) -> str:
    # A temporary index includes new files without changing the user's own index.
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        source = Path(_git(root, "rev-parse", "--absolute-git-dir").strip()) / "index"
        if source.exists():
            shutil.copy(source, index)
        scratch = {"GIT_INDEX_FILE": str(index)}
        unknown = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *NEW_CODE)
        names = _written_by_hand(root, unknown.split("\0")[:-1])
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            _git(root, "add", "--intent-to-add", "--", *some, **scratch)
        return _git(root, "diff", *_AS_PATCH, "HEAD", **scratch)


def _written_by_hand(root: Path, names: Sequence[str]) -> list[str]:
    """The files that lie neither in the folder of a run or store nor in a virtual environment."""
    made: dict[Path, bool] = {Path(): False}

    def is_made(folder: Path) -> bool:
        if folder not in made:
            marks = (root / folder / mark for mark in MADE_BY)
            made[folder] = (
                is_made(folder.parent) or str(folder) in _MADE or any(one.exists() for one in marks)
            )
        return made[folder]

    return [name for name in names if not is_made(Path(name).parent)]


def _git(root: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, **environment},
    )
    # As bytes: text mode would turn CRLF in a patch into LF.
    return done.stdout.decode("utf-8", errors="surrogateescape")
