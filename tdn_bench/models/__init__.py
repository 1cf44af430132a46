"""Networks for clips of T segments × L frames."""

from typing import TYPE_CHECKING

from pipelines.exports import lazy_exports
from tdn_bench.models.classifier import FrameClassifier
from tdn_bench.models.network import SegmentNetwork
from tdn_bench.models.variants import Variant, find_variant, list_models

if TYPE_CHECKING:
    from tdn_bench.hub.create import create_model

__all__ = ["FrameClassifier", "SegmentNetwork", "Variant", "create_model", "find_variant", "list_models"]

# Public here, as all that makes networks; but weights by name need the rooms in front of this one.
__getattr__, _ = lazy_exports("tdn_bench", {"hub.create": ("create_model",)})
