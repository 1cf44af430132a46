"""The rooms of the house: what imports what, read from the sources; and what may be missing on a user's machine."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

from support.paths import ROOT

PACKAGES = ("tdn_bench", "pipelines", "engines", "storage")
# From the street door inwards. A room knows the rooms behind it, and none of those beside it.
ORDER = (
    ("commands",),
    ("gpu_checks",),
    ("regression",),
    ("loadgen",),
    ("training", "visualizing"),
    ("reporting",),
    ("watching",),
    ("measurement", "exporting"),
    ("correctness", "prediction"),
    ("recipes", "recognizer"),
    ("cli",),
    ("hub",),
    ("checkpoint",),
    ("models", "records", "dataset_tools"),
    ("tdn_bench",),
    ("errors", "catalogue"),
    ("pipelines", "engines"),
    ("storage",),
)
DEPTH = {room: depth for depth, rooms in enumerate(ORDER) for room in rooms}


def name_of(path: Path) -> str:
    """The module of a file; of an `__init__.py`, the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
COMMANDS = {
    name
    for name, path in MODULES.items()
    if name.count(".") == 1 and name.startswith("tdn_bench.") and "def main(" in path.read_text(encoding="utf-8")
}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def import_nodes(node: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """All imports below a node, wherever they stand, but for those that only a type checker reads."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found.append(child)
        elif is_for_types_only(child):
            found += [n for part in child.orelse for n in import_nodes(ast.Module([part], []))]
        else:
            found += import_nodes(child)
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of this project that a module imports, also late, in a function."""
    found = set()
    for node in import_nodes(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{module}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return frozenset(name for name in found if name in MODULES)


def room_of(module: str) -> str:
    if module in COMMANDS or module == "tdn_bench.__main__":
        return "commands"
    parts = module.split(".")
    return parts[1] if parts[0] == "tdn_bench" and len(parts) > 1 else parts[0]


def test_every_room_is_in_the_plan() -> None:
    assert {room_of(module) for module in MODULES} == DEPTH.keys()
    assert len(COMMANDS) > 15


def test_contributing_draws_the_same_arrows() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = " ".join(line.removeprefix("> ") for line in page.splitlines() if line.startswith("> "))
    rooms = [level for level in ORDER if level != ("tdn_bench",)]  # the package's own name is no room
    assert drawn == " → ".join(", ".join(level) for level in rooms)


def test_no_circle() -> None:
    """Depth first: a module that is met again while what it imports is still being visited closes a circle."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' → '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for other in sorted(imports(module)):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_arrows_point_inwards_and_to_no_command() -> None:
    wrong = [
        f"{module} ({room_of(module)}) imports {other} ({room_of(other)})"
        for module in MODULES
        for other in sorted(imports(module))
        if room_of(module) != room_of(other) and DEPTH[room_of(module)] >= DEPTH[room_of(other)]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_test_sees_late_imports_and_passes_over_those_for_types() -> None:
    source = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    import c\n"
    assert [node.names[0].name for node in import_nodes(ast.parse(source))] == ["b", "c"]


def test_commands_are_thin() -> None:
    lines = {command: len(MODULES[command].read_text(encoding="utf-8").splitlines()) for command in COMMANDS}
    assert {command: n for command, n in lines.items() if n > 165} == {}


def test_no_package_hides_a_module_of_its_own() -> None:
    """A name that a package exports and that is also a file of it: which of the two an import gives, nobody can say."""
    for package, path in MODULES.items():
        if path.name == "__init__.py":
            names = {
                a.asname or a.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom)
                for a in node.names
            }
            assert not {name for name in names if f"{package}.{name}" in MODULES}


def test_no_file_is_kept_from_the_formatter() -> None:
    files = [*MODULES.values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    mark = "# fmt:" + " skip"
    assert [str(f) for f in files if mark in f.read_text(encoding="utf-8")] == []


# synthetic.py writes videos and pool workers import it as a whole: it may need PyAV at once.
PIPELINES = sorted(p.stem for p in (ROOT / "pipelines").glob("*.py") if p.stem not in ("__init__", "synthetic"))


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
for name in {PIPELINES}:
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
    modules = sorted(name for name in MODULES if not name.endswith("__main__"))
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
