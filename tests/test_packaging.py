"""The checkout: what is packaged, what may import what, and that importing is cheap."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[1]
SETUPTOOLS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {"invdiff": "invdiff", "invdiff.operators": "operators", "invdiff.priors": "priors"}
SOURCES = {name: sorted((ROOT / folder).rglob("*.py")) for name, folder in FOLDERS.items()}


def python(code: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def packages() -> dict[str, Path]:
    """Every folder on disk that holds Python modules, by the name it is imported as."""
    found = {}
    for name, files in SOURCES.items():
        top = ROOT / FOLDERS[name]
        for folder in {path.parent for path in files}:
            found[".".join([name, *folder.relative_to(top).parts])] = folder
    return found


# What is packaged


def test_every_package_on_disk_is_declared() -> None:
    assert set(SETUPTOOLS["packages"]) == set(packages())
    assert SETUPTOOLS["package-dir"] == FOLDERS


def test_every_data_file_is_declared() -> None:
    """Weights, recipes and py.typed: whatever lies in a package and is not Python has to match a pattern."""
    for name, folder in FOLDERS.items():
        patterns = SETUPTOOLS["package-data"].get(name, [])
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
        names = [path.relative_to(ROOT / folder).as_posix() for path in files]
        assert not [n for n in names if not any(fnmatch(n, pattern) for pattern in patterns)]
        assert not [pattern for pattern in patterns if not any(fnmatch(n, pattern) for n in names)]


def test_files_are_short() -> None:
    files = [*(path for group in SOURCES.values() for path in group), *(ROOT / "demos").glob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name: n for name, n in lengths.items() if n > 400}


def test_absolute_imports_have_a_link_for_type_checkers() -> None:
    for folder in ("operators", "priors"):
        assert (ROOT / "typings" / "invdiff" / folder).resolve() == ROOT / folder


# Importing


@pytest.mark.parametrize("module", ["invdiff", "invdiff.cli"])
def test_importing_is_cheap(module: str) -> None:
    heavy = ("torch", "deepinv", "numpy", "scipy", "skimage", "matplotlib")
    assert python(f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_no_module_hides_a_function() -> None:
    """Importing a module ``invdiff.solve`` would put it in the place of the function, whoever imports it."""
    assert not {path.stem for path in SOURCES["invdiff"]} & {"solve", "Result"}


@pytest.mark.parametrize("name", ["operators", "priors"])
def test_a_checkout_works_without_an_install(name: str) -> None:
    """-S keeps the editable install out; the packages invdiff needs are then found on the path alone."""
    needs = sorted({sysconfig.get_paths()[k] for k in ("purelib", "platlib")})
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; sys.path += {needs}; import invdiff.{name} as m; print(m.__file__)"
    assert Path(python(code, "-I", "-S")) == ROOT / name / "__init__.py"


def test_types_are_announced() -> None:
    spec = importlib.util.find_spec("invdiff")
    assert spec and spec.origin and (Path(spec.origin).parent / "py.typed").is_file()


# Who may import whom (ARCHITECTURE.md): a module imports only what stands lower than itself, or its own room

RANK = {
    **dict.fromkeys(["files", "seeds"], 0),
    **dict.fromkeys(["samplers", "io", "phantoms", "metrics"], 1),
    **dict.fromkeys(["operators", "priors", "baseline"], 2),
    "problem": 3,
    "solvers": 4,
    "result": 5,
    "solving": 6,
    **dict.fromkeys(["restore", "demo"], 7),
    "bench": 8,
    "cli": 9,
}
SIDEWAYS = {
    ("priors/analytic.py", "operators.noise"),  # closed-form posteriors read the operator's noise level
}


def imports(path: Path) -> Iterator[str]:
    """What of invdiff a file imports, as ``operators.noise`` or ``solving``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("invdiff.") for a in node.names if a.name.startswith("invdiff."))
        elif isinstance(node, ast.ImportFrom) and node.module == "invdiff":
            yield from (a.name for a in node.names if not a.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("invdiff."):
            yield (node.module or "").removeprefix("invdiff.")


def room(name: str, path: Path) -> str:
    """``operators``, ``priors``, or the part of the package ``invdiff`` that a file belongs to."""
    parts = path.relative_to(ROOT / FOLDERS[name]).with_suffix("").parts
    return parts[0] if name == "invdiff" else name.removeprefix("invdiff.")


@pytest.mark.parametrize("name", FOLDERS)
def test_arrows_point_down(name: str) -> None:
    wrong = []
    for path in SOURCES[name]:
        here, label = room(name, path), path.relative_to(ROOT).as_posix()
        if here == "__init__":
            continue
        for target in imports(path):
            there = target.split(".")[0]
            if there != here and RANK[there] >= RANK[here] and (label, target) not in SIDEWAYS:
                wrong.append(f"{label} imports invdiff.{target}")
    assert not wrong
