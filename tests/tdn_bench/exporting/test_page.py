"""Every command and snippet of docs/exporting.md works as it stands, in the page's order."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from support.paths import ROOT
from support.videos import write_video

from engines import why_unavailable
from tdn_bench.cli import run_command
from tdn_bench.export import main
from tdn_bench.recognizer import load_trained

PAGE = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def missing(text: str) -> str | None:
    """What a block needs that is not here."""
    if "openvino" in text:
        return why_unavailable("openvino", "cpu")
    if "aoti" in text:
        return why_unavailable("aoti", "cpu")
    return "no TensorRT" if "tensorrt" in text else None


@pytest.mark.slow
def test_the_page(trained_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who has a trained network and a video types it all; each snippet gets eager's logits."""
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "runs" / "demo" / "tdn" / "best.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(trained_checkpoint)
    write_video(tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 256, (30, 64, 96, 3), np.uint8), "mpeg4")
    names: dict[str, object] = {}
    checked = 0
    for kind, text in BLOCKS:
        lines = text.splitlines() if kind == "sh" else [text]
        for line in lines:
            if missing(line):
                continue
            if kind == "sh":
                program, command, *flags = shlex.split(line)
                assert (program, command) == ("tdn-bench", "export")
                assert run_command(main, flags) == 0, line
                continue
            names.pop("logits", None)
            exec(compile(line, "docs/exporting.md", "exec"), names)
            if "logits" in names:
                with torch.inference_mode():
                    right = load_trained(checkpoint).classifier(torch.from_numpy(names["frames"])).numpy()
                np.testing.assert_allclose(np.asarray(names["logits"]), right, rtol=0, atol=1e-3 * right.std())
                checked += 1
    assert checked >= 2
    assert sum(kind == "python" for kind, _ in BLOCKS) == 6
