"""The folder of a run: its checkpoints, and the last and the best weights. (Being replaced.)"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tdn_bench.checkpoint import clear_debris, read_training_state, save_checkpoint, write_training_state
from tdn_bench.errors import UserError

LAST, BEST, LOCK = "last.safetensors", "best.safetensors", ".lock"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read whole."""

    file: Path
    state: dict[str, Any]
    position: tuple[int, int]


class RunStore:
    """One run's folder."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, keep

    @classmethod
    @contextmanager
    def claim(cls, folder: Path, *, resume: bool, overwrite: bool, keep: int = 3) -> Iterator[RunStore]:
        folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder, keep)
        held = [*store._files(), *(p for p in (folder / LAST, folder / BEST) if p.exists())]
        if held and not (resume or overwrite):
            raise UserError(
                f"--output {folder}: holds a run already ({held[0].name}); go on with it with --resume, replace it "
                "with --overwrite, or name another folder"
            )
        clear_debris(folder)
        yield store

    def _files(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("epoch-*-step-*.pt"))

    def save(self, state: Mapping[str, object], position: tuple[int, int], *, wait: bool = False) -> None:
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        write_training_state(self.folder / "checkpoints" / f"epoch-{position[0]:04}-step-{position[1]:06}.pt", state)
        for old in self._files()[: -self.keep]:
            old.unlink()

    def save_weights(self, name: str, network: nn.Module, notes: Mapping[str, object]) -> None:
        save_checkpoint(network, self.folder / f"{name}.safetensors", notes)

    def drop_weights(self, name: str) -> None:
        (self.folder / f"{name}.safetensors").unlink(missing_ok=True)

    def wait(self) -> None: ...

    def newest(self) -> Loaded | None:
        files = self._files()
        if not files:
            return None
        epoch, step = map(int, re.findall(r"\d+", files[-1].stem))
        return Loaded(files[-1], read_training_state(files[-1]), (epoch, step))
