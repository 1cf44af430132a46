"""The rooms of the house: which package knows which, and what may be missing on a user's machine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT


def imported(path: Path) -> set[str]:
    """The top-level packages that a file names in any import, wherever in the file it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module if node.level == 0 and node.module else path.parent.name)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(("package", "unknown"), [("pipelines", "engines"), ("engines", "pipelines")])
def test_packages_know_only_what_lies_below_them(package: str, unknown: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert {path.name: imported(path) & {"tdn_bench", unknown} for path in files} == {f.name: set() for f in files}


# synthetic.py writes videos and pool workers import it as a whole: it may need PyAV at once.
MODULES = sorted(p.stem for p in (ROOT / "pipelines").glob("*.py") if p.stem not in ("__init__", "synthetic"))


# The start of a program in which the libraries named in `blocked` are missing.
BLOCK = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
"""


def test_pipelines_imports_without_dali_pyav_and_cuda() -> None:
    program = f"""
blocked = ("nvidia", "av", "pynvml")
{BLOCK}sys.meta_path.insert(0, Block())
import torch
torch.cuda.is_available = torch.cuda.init = lambda: sys.exit("CUDA was touched")
for name in {MODULES}:
    importlib.import_module("pipelines." + name)
try:
    from pipelines.clip import ClipSpec
    from pipelines.loader import create_decoder
    create_decoder("dali", ClipSpec(), torch.device("cpu"), 1)
except Exception as e:
    print(type(e).__name__, e)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("DataError backend dali: No module named")
    assert "--backend pyav" in done.stdout


def test_every_module_imports_without_dali_tensorrt_and_the_other_engines() -> None:
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in ROOT.glob("*/**/*.py")]
    packages = ("tdn_bench", "pipelines", "engines")
    modules = sorted(n for n in names if n.split(".")[0] in packages and not n.endswith("__main__"))
    assert len(modules) > 30
    program = f"""
blocked = ("nvidia", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "openvino", "pynvml", "triton")
{BLOCK}import torch
sys.meta_path.insert(0, Block())
torch.cuda.is_available = torch.cuda.init = lambda: sys.exit("CUDA was touched")
for name in {modules}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
