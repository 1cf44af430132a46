"""The notebook of the tutorials runs from its first cell to its last, and keeps what it printed."""

import os
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

nbformat = pytest.importorskip("nbformat", reason="the notebook needs the extra `docs`")

NOTEBOOK = ROOT / "docs/tutorials/first_clip.ipynb"


def test_the_notebook_keeps_its_output_and_nothing_of_the_machine_that_ran_it() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert any("image/png" in output.get("data", {}) for output in cells[-1].outputs)
    text = NOTEBOOK.read_text()
    assert len(text) < 600_000
    assert "/home/" not in text
    assert str(ROOT) not in text
    assert "\\u001b[" not in text


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs the extra `docs`")
    pytest.importorskip("ipykernel", reason="the notebook needs the extra `docs`")
    program = tmp_path / "bin/tdn-bench"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tdn_bench "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # fewer videos and epochs: this is about the cells, not about the accuracy
        cell.source = cell.source.replace("train=480, validation=80", "train=32, validation=16")
        cell.source = cell.source.replace("--epochs 8", "--epochs 1")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = ["".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in notebook.cells]
    assert any(text.count("%  ") == len(text.splitlines()) == 3 for text in said), "three classes"
    assert any("16 videos" in text for text in said)
