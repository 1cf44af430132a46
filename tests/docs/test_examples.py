"""examples/ and the Dockerfile: linted, their command lines parsed by the real commands' flags, what can run is run."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.paths import ROOT
from support.snippets import dry_run, extras, joined

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])
DOCKERFILE = joined((ROOT / "Dockerfile").read_text())


def tool(name: str) -> str:
    """A program of the environment or of the system; skips without it."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    return found or pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_a_script(script: Path) -> None:
    done = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


ENVIRONMENT = {
    "slurm.sbatch": {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "42"},
    "multi_node.sh": {"NODES": "2", "GPUS": "8", "HEAD": "node7"},
}


def start(script: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a script in a folder where SLURM's programs and torchrun only say how they were called."""
    say = "printf '%q ' \"$@\""
    for name, text in {
        "scontrol": "echo node7; echo node8",
        "srun": say,
        "torchrun": f"printf 'torchrun '; {say}",
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    command = ["bash", str(script), "a folder", "w.pth"]
    return subprocess.run(
        command, cwd=folder, env={"PATH": f"{folder}:/usr/bin:/bin"} | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts_torchrun_with_real_flags(script: Path, tmp_path: Path) -> None:
    done = start(script, tmp_path, **ENVIRONMENT[script.name])
    assert done.returncode == 0, done.stderr
    dry_run(done.stdout)
    assert done.stdout.startswith("torchrun --nnodes 2 --nproc-per-node 8 ")
    assert "--rdzv-endpoint node7:29500 -m tdn_bench.train sthv2 --data a\\ folder --init w.pth" in done.stdout
    assert done.stdout.rstrip().endswith("--resume auto")


def test_a_script_says_what_it_needs(tmp_path: Path) -> None:
    done = start(EXAMPLES / "multi_node.sh", tmp_path, NODES="2", GPUS="8")
    assert (done.returncode, done.stdout) == (1, "")
    assert "HEAD: the first machine" in done.stderr


@pytest.mark.slow
def test_a_temporal_module_of_ones_own_trains() -> None:
    command = [sys.executable, str(EXAMPLES / "temporal_module.py"), "--steps", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"^(TSN|S-TDM) \+ module: losses (\d\.\d+), (\d\.\d+)$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in losses] == ["TSN", "S-TDM"]


def test_the_module_of_the_example_starts_as_the_identity_and_learns() -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    import torch

    spec = spec_from_file_location("temporal_module_example", EXAMPLES / "temporal_module.py")
    assert spec is not None
    assert spec.loader is not None
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    module = example.DistanceFromMean(3, 2)
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(module(x), x)
    torch.nn.init.ones_(module.share)
    expected = x.clone()  # videos (0, 1) and (2, 3)
    for first in (0, 2):
        mean = (x[first] + x[first + 1]) / 2
        expected[first] += x[first] - mean
        expected[first + 1] += x[first + 1] - mean
    torch.testing.assert_close(module(x), expected)


def test_every_example_is_named_by_a_page() -> None:
    pages = "\n".join(p.read_text() for p in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assert [p.name for p in EXAMPLES.iterdir() if p.is_file() and f"examples/{p.name}" not in pages] == []


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_installs_this_project_as_pyproject_has_it() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]}
    needed = packages | {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {"constraints.txt"} == copied
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied
    (install,) = re.findall(r"pip install (.*)$", DOCKERFILE, re.MULTILINE)
    (group,) = re.findall(r"'\.\[([\w,-]+)\]'", install)
    assert set(group.split(",")) <= extras()
    assert "--constraint constraints.txt" in install
    python = project["project"]["requires-python"]
    assert python == ">=3.11", "Ubuntu 24.04, which the image is made from, has Python 3.12"
