"""Networks for clips of T segments × L frames."""

from tdn_bench.models.tdn import FrameClassifier, SegmentNetwork, create_model, list_models

__all__ = ["FrameClassifier", "SegmentNetwork", "create_model", "list_models"]
