"""A network in a folder, as it is shared: `model.safetensors`, `config.json` and a model card, `README.md`.

The weights are a checkpoint as `tdn-bench train` writes it, whose own notes say what `config.json` says: it is there
for other programs and for people, and must agree with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipelines.errors import printable
from pipelines.files import NO_FILE, fault_of_file, read_regular
from tdn_bench.checkpoint import CheckpointError, known_classes, read_metadata
from tdn_bench.models.variants import find_variant

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FORMAT = "tdn_bench model 1"
MAX_CONFIG_BYTES = 2**24


@dataclass(frozen=True)
class ModelConfig:
    """What a network needs to be built and fed: the notes of its checkpoint."""

    model: str
    num_segments: int
    size: int  # pixels
    crop_ratio: float
    classes: tuple[str, ...]

    @classmethod
    def of(cls, checkpoint: Path) -> ModelConfig:
        """From a checkpoint's notes. Raises CheckpointError where they do not say it."""
        return cls.read(read_metadata(checkpoint), checkpoint)

    @classmethod
    def read(cls, notes: Mapping[str, Any], where: Path) -> ModelConfig:
        """From JSON of the file `where`. Raises CheckpointError for what no network has."""
        kinds: dict[str, tuple[type, ...]] = {"model": (str,), "num_segments": (int,), "size": (int,)}
        kinds["crop_ratio"] = (int, float)
        for name, right in kinds.items():
            if type(notes.get(name)) not in right:
                found = printable(repr(notes.get(name)))[:60]
                raise CheckpointError(f"{where}: gives {name} as {found}; share what `tdn-bench train` wrote")
        classes = known_classes(notes, where)
        if classes is None:
            raise CheckpointError(f"{where}: names no classes; share what `tdn-bench train` wrote")
        try:
            find_variant(notes["model"])
        except ValueError as e:
            raise CheckpointError(f"{where}: {printable(str(e))}") from e
        return cls(**{name: notes[name] for name in kinds}, classes=tuple(classes))

    def to_json(self, version: str) -> bytes:
        """What `config.json` holds; `version` is tdn_bench's."""
        plain = {"format": FORMAT, "tdn_bench": version} | asdict(self) | {"num_classes": len(self.classes)}
        return (json.dumps(plain, indent=1, ensure_ascii=True) + "\n").encode()


def read_folder(folder: Path, name: str) -> tuple[Path, ModelConfig]:
    """The weights in a folder, and what they are; errors call it `name`. Raises CheckpointError where a file is missing
    or unreadable, and where configuration and weights disagree. The tensors are not read."""
    if not folder.is_dir():
        raise CheckpointError(f"{name}: {'is not a folder' if folder.exists() else 'no such folder'}")
    for file in (WEIGHTS, CONFIG):
        if (fault := fault_of_file(folder / file)) is not None:
            why = f"has no {file}" if fault == NO_FILE else f"its {file} {fault}"
            raise CheckpointError(f"{name}: {why}; `tdn-bench push` writes such a folder")
    weights, config = folder / WEIGHTS, folder / CONFIG
    try:
        said = json.loads(read_regular(config, MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{config}: cannot be read ({printable(str(e))[:100]})") from e
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise CheckpointError(f"{config}: is no configuration of this project's ({FORMAT!r} is not its format)")
    told, found = ModelConfig.read(said, config), ModelConfig.of(weights)
    for f in fields(ModelConfig):
        if (there := getattr(told, f.name)) != (here := getattr(found, f.name)):
            values = "other classes" if f.name == "classes" else f"{f.name} {there} and {here}"
            raise CheckpointError(f"{name}: {CONFIG} and {WEIGHTS} disagree ({values}); get or make it anew")
    count = said.get("num_classes")
    if count != len(found.classes):
        raise CheckpointError(
            f"{config}: num_classes is {printable(repr(count))[:40]}, its classes {len(found.classes)}"
        )
    return weights, found
