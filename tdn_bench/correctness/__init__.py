"""Are the answers right? Accuracy of scores, logits against a reference, engines, layers and decoders side by side."""

from tdn_bench.correctness.decoder_checks import SPEC, Case, Pixels, Returned, check_video, psnr_db
from tdn_bench.correctness.decoder_parity import (
    DecoderParity,
    Decoders,
    compare_decoders,
    compare_predictions,
    open_decoders,
)
from tdn_bench.correctness.decoder_reference import Truth, reference_pictures
from tdn_bench.correctness.engine_check import EngineMismatch, check_engine, checked_engine, reference_spec
from tdn_bench.correctness.engine_parity import EngineParity, EngineResult, Engines, open_engine_parity
from tdn_bench.correctness.evaluation import score
from tdn_bench.correctness.layer_parity import LayerParity, Probe, layer_names, per_layer
from tdn_bench.correctness.logits import TOLERANCE, LogitComparison, compare_logits, deviation, rank_correlation
from tdn_bench.correctness.scores import (
    Scores,
    check_target,
    ensemble,
    load_alike,
    load_scores,
    per_class_lines,
    score_differences,
)

__all__ = [
    "SPEC",
    "TOLERANCE",
    "Case",
    "DecoderParity",
    "Decoders",
    "EngineMismatch",
    "EngineParity",
    "EngineResult",
    "Engines",
    "LayerParity",
    "LogitComparison",
    "Pixels",
    "Probe",
    "Returned",
    "Scores",
    "Truth",
    "check_engine",
    "check_target",
    "check_video",
    "checked_engine",
    "compare_decoders",
    "compare_logits",
    "compare_predictions",
    "deviation",
    "ensemble",
    "layer_names",
    "load_alike",
    "load_scores",
    "open_decoders",
    "open_engine_parity",
    "per_class_lines",
    "per_layer",
    "psnr_db",
    "rank_correlation",
    "reference_pictures",
    "reference_spec",
    "score",
    "score_differences",
]
