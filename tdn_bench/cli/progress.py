"""How far a command has come; see `pipelines.progress`, which the scan of videos uses, too."""

from pipelines.progress import Advance, progress, set_quiet, tracked

__all__ = ["Advance", "progress", "set_quiet", "tracked"]
