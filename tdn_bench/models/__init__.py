"""Networks for clips of T segments × L frames."""

from tdn_bench.models.classifier import FrameClassifier
from tdn_bench.models.network import SegmentNetwork
from tdn_bench.models.variants import Variant, create_model, find_variant, list_models

__all__ = ["FrameClassifier", "SegmentNetwork", "Variant", "create_model", "find_variant", "list_models"]
