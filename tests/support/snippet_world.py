"""What the documentation's pages assume, small and synthetic: data sets, checkpoints, clips, saved scores and records.

The pages name places such as /data/sthv2, DIR and FILE; `placed` puts in their place what `make_world` made.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from pipelines.synthetic import CLASSES
from support.paths import ROOT
from support.reference import CASES, released_state_dict
from tdn_bench.checkpoint import save_checkpoint
from tdn_bench.evaluate import main as evaluate
from tdn_bench.models import FrameClassifier, create_model

CHECKPOINTS = {
    "runs/demo/tdn/best.safetensors": "tdn",
    "runs/demo/tdn/last.safetensors": "tdn",
    "runs/demo/tsn/best.safetensors": "tsn",
    "runs/sthv2/best.safetensors": "tdn",
    "best.safetensors": "tdn",
    "tdn.safetensors": "tdn",
    "tsn.safetensors": "tsn",
}
NOTES = {"num_segments": 4, "size": 64, "crop_ratio": 1.0}
# In a page's shell lines → in the world, in turn.
PLACES = (
    (r"(--dataset ucf101 .*--checkpoint) FILE", r"\1 ucf.safetensors"),
    (r"(?<=--checkpoint )FILE", "best.safetensors"),
    (r"(--checkpoint TDN_\S+ .*--class-names) classes.txt", r"\1 classes-174.txt"),
    (r"(?<=--manifest )FILE", "runs/sthv2.arrow"),
    (r"\bDIR\b", "data/sthv2"),
    (r"\bMACHINE\b", "machine"),
    (r"(?<![\w.])/(data|path/to)/", "data/"),
    (r"data/something-something-v2", "data/sthv2"),
    (r"--engine (trt|trt-rtx)\b", "--engine onnx"),
)


def placed(text: str) -> str:
    """A shell line with the places of the world in it."""
    for pattern, place in PLACES:
        text = re.sub(pattern, place, text)
    return text


def make_world(root: Path, data: Path) -> Path:
    """Make the world in the folder `root`; `data` is a synthetic data set of at least 16 and 8 clips."""
    shutil.copytree(data, root / "data/sthv2")
    shutil.copytree(data, root / "runs/demo/data")
    clips = sorted((data / "20bn-something-something-v2").glob("*.webm"))
    _ucf101(root / "data/UCF101", clips)
    _folders(root / "data/mine", clips)
    for place, network in CHECKPOINTS.items():
        _checkpoint(root / place, network)
    _released(root / "TDN_sthv2_r50_8f.pth.tar")
    (root / "classes-174.txt").write_text("".join(f"class {i}\n" for i in range(174)))
    folders = [f"{folder}/{name}" for folder in ("videos", "clips", "calibration") for name in ("one.mp4", "two.webm")]
    for name in ("clip.mp4", "other.mp4", *folders):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(clips[len(name) % len(clips)], root / name)
    shutil.copytree(ROOT / "results/amd-epyc-2core/demo", root / "results/machine/demo")
    shutil.copytree(ROOT / "results/amd-epyc-2core/demo", root / "runs/demo/records")
    shutil.copy(next((root / "results/machine/demo").glob("throughput-*.json")), root / "results/machine/RECORD.json")
    for name in ("examples", "hubconf.py"):
        (root / name).symlink_to(ROOT / name)
    (root / "results/amd-epyc-2core").symlink_to(ROOT / "results/amd-epyc-2core")
    return root


def add_scores() -> None:
    """The scores that the page on testing combines, saved by `tdn-bench evaluate` in the current folder."""
    for name, network in (("k400-8f", "tdn"), ("k400-16f", "tsn")):
        flags = ["--checkpoint", f"{network}.safetensors", "--data", "data/sthv2"]
        evaluate([*flags, "--scores", f"{name}.safetensors"])
    for split in "123":
        flags = ["--model", "tsn_resnet_small", "--checkpoint", "ucf.safetensors", "--dataset", "ucf101"]
        flags += ["--data", "data/UCF101", "--split", split, "--scores", f"split{split}.safetensors"]
        evaluate(flags)


def names() -> dict[str, Any]:
    """What the Python snippets take as given."""
    torch.manual_seed(0)
    network = create_model("tdn_resnet_small", num_classes=8, num_segments=8).eval()
    return {
        "clip": torch.rand(1, 8, 5, 3, 224, 224),
        "frames": torch.randint(0, 256, (2, 8, 5, 224, 224, 3), dtype=torch.uint8),
        "batches": [torch.randint(0, 256, (2, 8, 5, 224, 224, 3), dtype=torch.uint8)],
        "classifier": FrameClassifier(network).eval(),
        "folder": Path("cache").absolute(),
    }


def _checkpoint(path: Path, network: str, classes: tuple[str, ...] = CLASSES) -> None:
    torch.manual_seed(0)
    model = create_model(f"{network}_resnet_small", num_classes=len(classes), num_segments=4)
    torch.nn.init.normal_(model.classifier.weight, 0, 0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, path, NOTES | {"model": f"{network}_resnet_small", "classes": list(classes)})


def _released(path: Path) -> None:
    """A file as the authors released them: their names, no classes."""
    case = next(c for c in CASES if c["arch"] == "resnet50" and c["num_segments"] == 8)
    state = released_state_dict(case)
    state["new_fc.weight"], state["new_fc.bias"] = torch.randn(174, 2048) / 50, torch.zeros(174)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 59}, path)


def _folders(root: Path, clips: list[Path]) -> None:
    """A folder a class, and the authors' lists of the same clips below the current folder."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for i, clip in enumerate(clips):
        name, label = ("opening", "closing")[i % 2], i % 2
        target = root / name / f"{clip.stem}.webm"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)
        lists["val" if i % 6 > 3 else "train"].append(f"{name}/{target.name} {label}")
    top = root.parents[1]
    for name, lines in lists.items():
        (top / f"{name}.txt").write_text("\n".join(lines) + "\n")
    (top / "classes.txt").write_text("opening\nclosing\n")


def _ucf101(root: Path, clips: list[Path]) -> None:
    """Two classes of UCF101's layout, with all three splits; and a checkpoint of them."""
    classes, lists = ("Archery", "Bowling"), root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(classes, 1)))
    videos = []
    for i, clip in enumerate(clips[:12]):
        name = classes[i % 2]
        target = root / "UCF-101" / name / f"v_{name}_g{i:02d}_c01.avi"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)
        videos.append((f"{name}/{target.name}", i % 2 + 1))
    for split in range(3):
        held_out = videos[4 * split : 4 * split + 4]
        kept = [f"{path} {label}\n" for path, label in videos if (path, label) not in held_out]
        (lists / f"trainlist0{split + 1}.txt").write_text("".join(kept))
        (lists / f"testlist0{split + 1}.txt").write_text("".join(f"{path}\n" for path, _ in held_out))
    _checkpoint(root.parents[1] / "ucf.safetensors", "tsn", classes)
