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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_command_of_a_script_has_real_flags(script: Path) -> None:
    text = joined(script.read_text())
    (command,) = [line for line in text.splitlines() if re.match(r"(srun )?torchrun ", line)]
    values = {
        "goes_on[@]": "--resume",
        "data": "data",
        "start": "resnet50.pth",
        "output": "runs/sthv2",
        "nodes[0]": "node7",
    }
    for name, value in values.items():
        command = re.sub(rf'"?\$\{{?{re.escape(name)}\}}?"?(?![\w:])', value, command)
    command = re.sub(r'"\$\{?\w+(:\?[^}]*)?\}?', '"2', command)  # of the scheduler and the environment
    assert "$" not in command
    dry_run(command)


def test_the_slurm_script_goes_on_with_its_run(tmp_path: Path) -> None:
    """With stand-ins for SLURM's programs: torchrun is started once, with --resume where there is a run."""
    for name, text in {"scontrol": "echo node7; echo node8", "srun": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "42"}
    environment = slurm | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", str(EXAMPLES / "slurm.sbatch"), "a folder", "w.pth"]
    run = lambda: subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)  # noqa: E731
    first = run()
    assert first.returncode == 0, first.stderr
    assert "--nnodes 2 --nproc-per-node 8 --rdzv-id 42" in first.stdout
    assert "node7:29500" in first.stdout
    assert "--data a folder --init w.pth" in first.stdout
    assert "--resume" not in first.stdout
    (tmp_path / "runs/sthv2").mkdir(parents=True)
    (tmp_path / "runs/sthv2/last.pt").touch()
    assert run().stdout.rstrip().endswith("--resume")


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
