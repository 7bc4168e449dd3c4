"""The promises that hold the code base together, checked on its syntax trees."""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"data_pipeline": set(), "ptm_dist": {"data_pipeline"}, "launcher": {"ptm_dist", "data_pipeline"}}
FILES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imported_modules(path: Path, *, at_import_time: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_import_time else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= submodules if len(submodules) == len(node.names) else submodules | {node.module}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    forbidden = set(PACKAGES) - PACKAGES[package] - {package}
    for path in (ROOT / package).rglob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & (forbidden | {"tests", "benchmarks"}), path


def test_no_module_imports_itself_through_others():
    graph = defaultdict(set)
    for path in FILES:
        own = module_name(path)
        graph[own] |= {name for name in imported_modules(path, at_import_time=True) & MODULES if name != own}
    graphlib.TopologicalSorter(graph).prepare()


def test_models_know_nothing_of_parallelism():
    for path in (ROOT / "ptm_dist" / "models").rglob("*.py"):
        for name in imported_modules(path):
            assert not name.startswith(("ptm_dist.parallel", "ptm_dist.engines", "torch.distributed")), path


def test_functions_can_be_read_at_one_glance():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                # A kernel may have forty arguments, one to a line: a list, and nothing to follow.
                lines = node.end_lineno - node.body[0].lineno + 1 - docstring.count("\n")
                assert lines <= 60, f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_nothing_is_global_and_nothing_is_left_to_do():
    for path in FILES:
        text = path.read_text()
        assert not any(isinstance(node, ast.Global) for node in ast.walk(ast.parse(text))), path
        assert "TODO" not in text and "FIXME" not in text, path
