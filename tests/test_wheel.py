"""The wheel holds what a clone does: every module, the types' marks and the records' schema."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

DATA = {
    "tdn_bench/records/record.schema.json",
    "tdn_bench/records/published.tsv",
    *(f"tdn_bench/reporting/report.{suffix}" for suffix in ("html.jinja", "css", "js")),
}
PACKAGES = ("tdn_bench", "pipelines", "engines", "storage")


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="no setuptools to build with")
    source = tmp_path / "source"  # a copy: setuptools builds inside the sources
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(source)]
    done = subprocess.run([*command, "--wheel-dir", str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    found = set(zipfile.ZipFile(wheel).namelist())
    files = {str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    files |= {f"{package}/py.typed" for package in PACKAGES} | DATA
    assert files <= found, files - found
    assert {name.split("/")[0] for name in found if ".dist-info" not in name} == set(PACKAGES)
