"""`tdn_bench.models.create_model`: a network with fresh weights, or with those that a name stands for."""

from __future__ import annotations

from tdn_bench.checkpoint import CheckpointError, load_checkpoint
from tdn_bench.hub.folder import ModelConfig
from tdn_bench.hub.names import is_named, local_checkpoint
from tdn_bench.models.network import SegmentNetwork
from tdn_bench.models.variants import create_model as create_fresh
from tdn_bench.models.variants import find_variant


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    num_segments: int | None = None,
    dropout: float = 0.5,
    weights: str | None = None,
) -> SegmentNetwork:
    """Build a network; its input is a float clip (B, T, L, C, H, W), normalised.

    Args:
        name: One of `list_models()`.
        num_classes: Of the classifier; by default those of `weights`.
        num_segments: T; by default that of `weights`, else 8 (32 of I3D).
        dropout: Before the classifier.
        weights: `hf-hub:user/repo`, `hf-hub:user/repo@revision` or `local-dir:PATH`, as `tdn-bench push` writes them;
            None starts fresh. Only tensors are read, nothing is unpickled.

    Raises:
        ValueError: An unknown name, no number of classes, fewer than 2 segments or fewer than 1 class.
        CheckpointError: The weights cannot be had, are damaged, or are of another network or of other classes.
    """
    find_variant(name)
    if weights is None:
        if num_classes is None:
            raise ValueError("num_classes is missing: how many classes shall the network tell apart?")
        return create_fresh(name, num_classes=num_classes, num_segments=num_segments, dropout=dropout)
    if not is_named(weights):
        raise CheckpointError(
            f"weights {weights!r}: name hf-hub:user/repo or local-dir:PATH; load_checkpoint takes a file"
        )
    file = local_checkpoint(weights)
    config = ModelConfig.of(file)
    if config.model != name:
        raise CheckpointError(f"{weights}: is a {config.model}, not a {name}")
    if num_classes not in (None, len(config.classes)):
        raise CheckpointError(
            f"{weights}: knows {len(config.classes)} classes, not {num_classes}; to train it on others, load all but "
            "the classifier with tdn_bench.checkpoint.load_backbone, or train with --finetune"
        )
    segments = config.num_segments if num_segments is None else num_segments
    network = create_fresh(name, num_classes=len(config.classes), num_segments=segments, dropout=dropout)
    load_checkpoint(network, file)
    return network
