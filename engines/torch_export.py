"""A module in, a torch.export program out: what AOTInductor compiles, and what PyTorch loads from a file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from engines.spec import EngineError


def export_program(network: nn.Module, example: Tensor, largest_batch: int | None = None) -> ExportedProgram:
    """The graph of `network`, called with frames like `example`, uint8 (B, T, L, H, W, C): for that batch size, or with
    `largest_batch` for every one from 1 to it.

    Raises EngineError for a network that cannot be exported, or that works for one batch size only where the batch is
    to be dynamic.
    """
    dynamic = None if largest_batch is None else ({0: Dim("batch", min=1, max=largest_batch)},)
    try:
        with torch.no_grad(), quiet_torch():
            return torch.export.export(network, (example,), dynamic_shapes=dynamic)
    except (torch._dynamo.exc.UserError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        message = "this network does not export (eager and compile need no export)"
        raise EngineError(f"{message}: {reason}") from error


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Within, torch keeps its warnings about torch to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
