"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("api", "store", "operator", "trainer-image", "cli", "cluster")
MODULES = sorted(
    path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "__pycache__" not in str(path)
)
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
    if ".venv" not in path.parts
)


def _imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    return {name.split(".")[0] for name in names}


def _loaded(path: Path) -> set[str]:
    """Libraries that a module imports as soon as it is imported itself."""
    tree = ast.parse(path.read_text())
    later = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, later)
        for node in ast.walk(function)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("kopf", "operator/kubebooth_operator/watch.py"),
        ("minio", "store/kubebooth_store/"),
        ("torch", "trainer-image/kubebooth_trainer/"),
        ("diffusers", "trainer-image/kubebooth_trainer/"),
    ],
)
def test_a_library_is_imported_in_its_own_place_only(library: str, only: str) -> None:
    importers = {str(p.relative_to(ROOT)) for p in MODULES if library in _imported(p)}
    assert importers
    assert {path for path in importers if not path.startswith(only)} == set()


@pytest.mark.parametrize("room", ["convert", "fetch", "prepare"])
def test_a_worker_that_needs_no_torch_does_not_load_it_with_its_modules(room: str) -> None:
    heavy = {"torch", "diffusers", "transformers", "accelerate"}
    folder = ROOT / "trainer-image" / "kubebooth_trainer" / room
    loaded = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in folder.rglob("*.py")
        if (found := heavy & _loaded(path))
    }
    assert list(folder.rglob("*.py"))
    assert loaded == {}


def test_no_module_has_a_name_that_tells_nothing() -> None:
    banned = {"util", "utils", "helper", "helpers", "manager", "managers", "base", "misc"}
    assert [str(p.relative_to(ROOT)) for p in MODULES if p.stem in banned] == []


def test_every_module_opens_with_what_it_is_for() -> None:
    silent = [
        str(p.relative_to(ROOT)) for p in MODULES if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert silent == []


def test_no_file_has_outgrown_its_room() -> None:
    large = {
        str(p.relative_to(ROOT)): lines
        for p in MODULES
        if (lines := len(p.read_text().splitlines())) > 400
    }
    assert large == {}


def test_broad_excepts_stand_only_where_a_process_begins() -> None:
    broad = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.name != "__main__.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
        )
    ]
    assert broad == []


def test_no_committed_file_names_a_place_of_one_machine() -> None:
    found = subprocess.run(
        [
            "git",
            "grep",
            "-nIE",
            r"(/root/|/home/[a-z]+/|/work/|pypi\.org|proxy\.golang)",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    assert [line for line in found if "tests/unit/test_house.py" not in line] == []


def test_every_link_in_the_docs_leads_somewhere() -> None:
    assert PAGES
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            outside = target.startswith(("http://", "https://", "mailto:"))
            if not outside and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_readme_names_every_folder_that_matters() -> None:
    readme = (ROOT / "README.md").read_text()
    listed = subprocess.run(
        ["git", "ls-tree", "-d", "--name-only", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [name for name in listed if f"`{name}/" not in readme] == []
