"""What `import pipelines` offers, and what it does not load before it is needed."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from support.paths import ROOT

import pipelines


def test_every_exported_name_is_there_and_the_same_for_type_checkers() -> None:
    for name in pipelines.__all__:
        assert getattr(pipelines, name) is not None
    assert set(pipelines.__all__) <= set(dir(pipelines))
    tree = ast.parse(Path(pipelines.__file__).read_text(encoding="utf-8"))
    checked = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(checked) == sorted(pipelines.__all__) == dir(pipelines)
    for name, module in checked.items():
        assert getattr(pipelines, name) is getattr(import_module(module), name)


def test_a_name_that_is_not_there_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'pipelines' has no attribute 'ClipReader'$"):
        pipelines.ClipReader  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'ClipReader'"):
        from pipelines import ClipReader  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize(
    ("names", "unneeded"),
    [
        ("", ("torch", "numpy", "pyarrow", "av", "nvidia")),
        ("DataError, BadClipPolicy, read_dataset, DATASET_NAMES", ("torch", "numpy", "pyarrow", "av", "nvidia")),
        ("Manifest, build_manifest, scan_file", ("torch", "av", "nvidia")),
        ("ClipLoader, ClipSpec, Ledger", ("av", "nvidia")),
    ],
)
def test_a_name_loads_what_it_needs_alone(names: str, unneeded: tuple[str, ...]) -> None:
    program = f"import pipelines, sys\n{f'from pipelines import {names}' if names else ''}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(unneeded) & set(done.stdout.split())


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports when it is imported itself: not in functions, not for types."""
    body = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    return {node.module.removeprefix("pipelines.") for node in body if (node.module or "").startswith("pipelines.")}


def test_no_circle_of_imports() -> None:
    files = {path.stem: path for path in (ROOT / "pipelines").glob("*.py")}
    below = {name: imports(path) for name, path in files.items()}
    while leaves := [name for name, needed in below.items() if not needed & set(below)]:
        for name in leaves:
            del below[name]
    assert below == {}
