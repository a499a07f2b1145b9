"""Imports run downwards: read from the source with `ast`, nothing is executed."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
           for path in [ROOT / "train.py", ROOT / "eval.py", *sorted((ROOT / "pm").rglob("*.py"))]}
FILES = {name.removesuffix(".__init__"): path for name, path in SOURCES.items()}


def imported_by(name: str) -> set[str]:
    """All that a file imports, at the top or inside functions: our modules by their name, the rest by its first part.

    `from pm.x import y` is pm.x.y where that is a module, else pm.x.
    """
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found |= {full if (full := f"{node.module}.{alias.name}") in FILES else node.module for alias in node.names}
    return {module if module in FILES else module.split(".")[0] for module in found}


def ours(name: str) -> set[str]:
    return imported_by(name) & FILES.keys()


def test_the_walk_sees_known_imports():
    assert {"train", "eval", "pm", "pm.engine", "pm.data.sources"} <= FILES.keys()
    assert {"pm.loss", "pm.session", "deepspeed"} <= imported_by("train")
    assert "datasets" in imported_by("pm.data.sources")  # inside a function
    assert ours("pm.data.split") == {"pm.data.example", "pm.errors"}


PURE = {"pm.plan", "pm.loss", "pm.schedule", "pm.data.targets", "pm.predictions", "pm.calibration", "pm.intervals",
        "pm.ranking", "pm.metrics", "pm.benchmarks", "pm.report", "pm.plots", "pm.card"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_import_only_pure_modules_of_ours_and_errors(name):
    assert ours(name) <= PURE | {"pm.errors"}


@pytest.mark.parametrize("name", ["pm.errors", "pm.files", "pm.task", "pm.packing", "pm.data.example"])
def test_leaves_import_no_other_module_of_ours(name):
    assert ours(name) == set()


@pytest.mark.parametrize(("name", "wanted"), [
    ("pm.packing", {"torch"}), ("pm.attention", {"torch", "pm.packing"}),
    ("pm.fused", {"torch", "transformers", "peft", "pm.packing", "pm.attention"})])
def test_the_faster_forward_needs_torch_and_the_libraries_whose_weights_it_reads(name, wanted):
    """And not pm.model, by which it is called."""
    assert imported_by(name) - sys.stdlib_module_names == wanted


def test_only_what_trains_and_the_engine_import_deepspeed():
    assert {name for name in FILES if "deepspeed" in imported_by(name)} == {"train", "pm.pretrain", "pm.engine"}


def test_only_the_example_imports_trl():
    assert {name for name in FILES if imported_by(name) & {"trl", "accelerate"}} == {"pm.examples.grpo"}


def test_nothing_imports_the_examples():
    assert [name for name in FILES if any(other.startswith("pm.examples") for other in ours(name))] == []


def test_nothing_imports_the_scripts():
    assert {name: scripts for name in FILES if (scripts := imported_by(name) & {"train", "eval", "pm.pretrain"})} == {}


def test_only_what_trains_imports_the_engine():
    """Scoring, perplexities and export then work without deepspeed."""
    assert {name for name in FILES if "pm.engine" in ours(name)} == {"train", "pm.pretrain", "pm.session"}
    assert {name for name in FILES if "pm.session" in ours(name)} == {"train", "pm.pretrain"}


def test_imports_have_no_cycle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name):], name])
        if name not in done:
            for imported in sorted(ours(name)):
                visit(imported, (*path, name))
            done.add(name)

    for name in FILES:
        visit(name, ())
    assert done == set(FILES)
