"""Networks rewritten for inference are the networks that were trained."""

import copy

import pytest
import torch
from support.networks import make, make_frames
from torch import Tensor, nn

from engines import EngineSpec, create_engine
from tdn_bench.models.inference import InferenceClassifier, InferenceLongTermDifference
from tdn_bench.models.temporal_difference import LongTermDifference
from tdn_bench.models.variants import VARIANTS


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.std()).item()


@pytest.mark.parametrize("engine", ["eager", "onnx", "trt"])  # the three forms of the temporal convolution
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_logits_stay(variant: str, engine: str) -> None:
    network, frames = make(variant), make_frames(variant)
    wanted = network(frames)
    rewritten = copy.deepcopy(network).for_inference(engine)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in rewritten.modules())
    assert distance(rewritten(frames), wanted) < 1e-4
    assert distance(rewritten(frames.float()), wanted) < 1e-4  # what an exported graph hands over


@pytest.mark.parametrize(("segments", "height", "width"), [(2, 64, 64), (3, 97, 65), (8, 64, 80)])
@torch.inference_mode()
def test_the_logits_stay_for_any_clip(segments: int, height: int, width: int) -> None:
    network, frames = make("tdn", segments), make_frames("tdn", segments, 1, height, width)
    assert distance(copy.deepcopy(network).for_inference("eager")(frames), network(frames)) < 1e-4


def seen(module: nn.Module, run: nn.Module, frames: Tensor) -> list[tuple[int, ...]]:
    """The shapes that `module` is called with while `run` takes the frames."""
    shapes: list[tuple[int, ...]] = []
    with module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape))):
        run(frames)
    return shapes


@torch.inference_mode()
def test_zero_differences_are_not_computed() -> None:
    network = make("tdn", 4)
    frames = make_frames("tdn", 4, batch=3)
    plain = network.network.res3[0].temporal.difference
    assert isinstance(plain, LongTermDifference)
    (before,) = seen(plain.full_scale, network, frames)
    rewritten = network.for_inference("trt")
    difference = rewritten.network.res3[0].temporal.difference
    assert isinstance(difference, InferenceLongTermDifference)
    (after,) = seen(difference.full_scale, rewritten, frames)
    assert (before[0], after[0]) == (3 * 2 * 4, 3 * 2 * 3)  # both directions at once: of T segments, then of T − 1


@torch.inference_mode()
def test_only_the_centre_frame_is_normalised() -> None:
    rewritten = make("tdn").for_inference("eager")
    assert isinstance(rewritten, InferenceClassifier)
    assert not hasattr(rewritten, "std")
    shapes = []
    with rewritten.network.short_term.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0])):
        rewritten(frames := make_frames("tdn"))
    assert torch.equal(shapes[0], frames.permute(0, 1, 2, 5, 3, 4).flatten(0, 1).float())  # as they came


def test_one_flag_switches_it() -> None:
    network, shape = make("tdn"), (4, 5, 64, 70, 3)
    for rewrite in (True, False):
        with create_engine("eager", network, EngineSpec(shape, 2, rewrite=rewrite)) as engine:
            assert any(isinstance(m, nn.BatchNorm2d) for m in engine._network.modules()) is not rewrite
            assert isinstance(engine._network, InferenceClassifier) is rewrite
    assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules()), "the network that was given has changed"


@torch.inference_mode()
def test_sixteen_bits_stay_close() -> None:
    network, frames = make("tdn"), make_frames("tdn")
    wanted = network(frames)
    rewritten = network.for_inference("eager")
    assert distance(copy.deepcopy(rewritten).half()(frames), wanted) < 0.02
    assert distance(rewritten.bfloat16()(frames), wanted) < 0.1
