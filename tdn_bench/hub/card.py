"""A model card from a checkpoint and the records of its runs: every figure is one of a record's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.scan import checksum
from tdn_bench.checkpoint import read_metadata
from tdn_bench.errors import UserError
from tdn_bench.hub.folder import ModelConfig
from tdn_bench.records import Record, machine_text
from tdn_bench.records.tables import markdown_code, markdown_table, markdown_text

# Settings of a training that a reader may want; places on somebody's disk are none.
RECIPE = (
    "batch_size",
    "epochs",
    "lr",
    "schedule",
    "milestones",
    "warmup_epochs",
    "momentum",
    "weight_decay",
    "clip_gradient_norm",
    "dropout",
    "crop_scales",
    "precision",
    "seed",
    "init",
    "checkpoint",
    "finetune",
)


def check_evidence(checkpoint: Path, config: ModelConfig, records: Sequence[Record]) -> None:
    """Raise UserError for a record that is not of this checkpoint: its figures would be another network's."""
    for record in records:
        if record.kind not in ("train", "evaluate"):
            raise UserError(f"--record: {record.kind} {record.name}: a card takes records of train and evaluate")
        what = f"--record: {record.kind} {record.name}"
        for name in ("model", "num_segments", *(("size",) if record.kind == "train" else ())):
            if record.settings.get(name) != getattr(config, name):
                raise UserError(f"{what}: is of another network ({name} {record.settings.get(name)})")
        if list(record.details.get("classes") or []) != list(config.classes):
            raise UserError(f"{what}: is of other classes than {checkpoint}")
        if record.kind == "evaluate" and record.details.get("checkpoint_sha256") != checksum(str(checkpoint)):
            raise UserError(f"{what}: is not of {checkpoint}, or does not say of which file; evaluate it again")
        if record.kind == "train" and not _is_of(record, read_metadata(checkpoint)):
            raise UserError(f"{what}: is of another run than {checkpoint}; name the record that lies beside it")


def _is_of(record: Record, notes: Mapping[str, Any]) -> bool:
    """Whether a training's record holds the epoch of a checkpoint, with its accuracy."""
    epoch, top1 = notes.get("epoch"), notes.get("top1")
    if type(epoch) is not int or not 1 <= epoch <= len(record.samples.get("loss", ())):
        return False
    found = dict(zip(record.samples.get("top1_epoch", ()), record.samples.get("top1_percent", ()), strict=False))
    there = found.get(epoch)
    if top1 is None or there is None:
        return top1 is there
    return isinstance(top1, int | float) and math.isclose(top1, there, rel_tol=1e-9)


def accuracy_rows(checkpoint: Path, records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the records say of the checkpoint's accuracy: data, split, protocol and percentages."""
    rows = []
    for record in records:
        data, f = record.data or {}, record.figures
        name = str(data.get("name", "?"))
        if "of_videos" in data:
            name += f" (a part: {data['videos']:,} of {data['of_videos']:,} videos)"
        if record.kind == "evaluate":
            p = record.details["protocol"]
            row = {"split": record.settings.get("subset"), "views": f"{p['clips']} × {p['crops']}", "size": p["size"]}
            row |= {"top1": f.get("top1_percent"), "top5": f.get("top5_percent"), "videos": f.get("videos")}
        else:
            notes = read_metadata(checkpoint)
            last = notes["epoch"] == len(record.samples["loss"])
            row = {"split": "validation", "views": "1 × 1", "size": record.settings.get("size"), "videos": None}
            row |= {"top1": notes.get("top1"), "top5": f.get("top5_percent") if last else None}
        if row["top1"] is not None:
            rows.append({"data": name, "command": f"tdn-bench {record.kind}", **row})
    return rows


def model_card(repo: str, checkpoint: Path, records: Sequence[Record], licence: str) -> str:
    """The card, Markdown with YAML at its head. Needs huggingface_hub."""
    from huggingface_hub import EvalResult, ModelCardData

    config, rows = ModelConfig.of(checkpoint), accuracy_rows(checkpoint, records)
    results = [
        EvalResult(
            task_type="video-classification",
            dataset_type=re.sub(r"[^\w.-]+", "-", row["data"]),
            dataset_name=row["data"],
            dataset_split=str(row["split"]),
            metric_type="accuracy",
            metric_name=f"top-{k} accuracy, {row['views']} views",
            metric_value=row[f"top{k}"],
        )
        for row in rows
        for k in (1, 5)
        if row[f"top{k}"] is not None
    ]
    name = repo.rpartition("/")[2]
    head = ModelCardData(
        license=licence,
        library_name="tdn_bench",
        pipeline_tag="video-classification",
        tags=["video-classification", "action-recognition", "tdn_bench"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(
        [*_about(name, repo, config), *_accuracy(rows), *_runs(records)]
    )


def _about(name: str, repo: str, config: ModelConfig) -> list[str]:
    return [
        f"# {markdown_text(name)}",
        f"`{config.model}` for {len(config.classes)} classes, {config.num_segments} segments of {config.size}² pixels. "
        "Trained with tdn_bench; `config.json` names the classes.",
        "## Use",
        f'```python\nfrom tdn_bench import load_recognizer\n\nrecognize = load_recognizer("hf-hub:{repo}")\n'
        'recognize("clip.mp4").top(5)\n```',
        f'```python\nfrom tdn_bench.models import create_model\n\nmodel = create_model("{config.model}", '
        f'weights="hf-hub:{repo}").eval()\n```',
    ]


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["## Accuracy", "No record says how accurate these weights are."]
    header = ["data", "split", "clips × crops", "pixels", "videos", "top-1 %", "top-5 %", "from"]

    def percent(value: Any) -> str:
        return "–" if value is None else f"{value:.2f}"

    cells = []
    for r in rows:
        facts = [str(r["data"]), str(r["split"]), r["views"], str(r["size"]), str(r["videos"] or "–")]
        cells.append([*facts, percent(r["top1"]), percent(r["top5"]), markdown_code(r["command"])])
    return ["## Accuracy", markdown_table(header, cells)]


def _runs(records: Sequence[Record]) -> list[str]:
    parts = []
    for record in records:
        title = {"train": "Training", "evaluate": "Evaluation"}[record.kind]
        data = record.data or {}
        facts = [
            ("data", f"{data.get('name', '?')}, {data.get('videos', 0):,} videos"),
            ("digest of the data", markdown_code(str(data.get("digest", "?")))),
            ("command", markdown_code(" ".join(map(without_place, record.command)))),
            ("commit", str(record.commit)),
            ("machine", machine_text(record.machine)),
            ("versions", ", ".join(f"{package} {version}" for package, version in record.versions.items())),
            ("when", record.created_utc),
        ]
        if record.kind == "train":
            known = [(s, record.settings[s]) for s in RECIPE if record.settings.get(s) is not None]
            recipe = ", ".join(f"{s} {without_place(_plain(value))}" for s, value in known)
            facts.insert(1, ("recipe", f"{record.name}: {recipe}"))
        parts += [f"## {title}", markdown_table(["what", ""], [[k, v] for k, v in facts])]
    return [*parts, "The record of each run is the source of its figures.\n"] if parts else [""]


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def without_place(word: str) -> str:
    """A word of a command line without the folders of somebody's disk: their names are nobody's business."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if value.startswith(("/", "~", "../")) or "\\" in value:
        value = "…/" + re.split(r"[/\\]", value.rstrip("/"))[-1]
    return flag + equals + value
