"""Every exported graph is the network: against eager, on decoded clips, in all the forms that people export."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.networks import make
from torch import Tensor

from engines import Engine, EngineError, EngineSpec, create_engine, supported_precisions, why_unavailable
from pipelines.clip import ClipSpec
from pipelines.loader import ClipLoader
from tdn_bench.cli.flags import DataFlags
from tdn_bench.models.variants import VARIANTS

SIZE = 64
EXPORTING = ["onnx", "openvino", "aoti"]
LIMIT = {"fp32": 1e-3, "bf16": 0.15, "fp16": 0.03, "int8": 0.5}  # of the logits' deviation


def clips(data: DataFlags, variant: str, num_segments: int, count: int = 3) -> Tensor:
    """Decoded videos: uint8 (B, T, L, H, W, C)."""
    spec = ClipSpec(num_segments, VARIANTS[variant].frames_per_segment, size=SIZE)
    videos = data.open(progress=False).split("validation")[:count]
    with ClipLoader(videos, spec, count, backend="pyav", workers=1) as loader:
        return torch.cat([batch.frames for batch in loader.epoch()])


Build = Callable[[str, str, str, EngineSpec], Engine]


@pytest.fixture(scope="module")
def build() -> Iterator[Build]:
    """Builds the engine of a variant and backbone, once for all tests that want the same one."""
    with ExitStack() as open_engines:

        @functools.cache
        def once(engine: str, variant: str, backbone: str, spec: EngineSpec) -> Engine:
            network = make(variant, spec.frames_shape[0], backbone)
            return open_engines.enter_context(create_engine(engine, network, spec))

        yield once


def check(
    build: Build,
    engine: str,
    variant: str,
    backbone: str,
    frames: Tensor,
    precision: str = "fp32",
    dynamic_batch: bool = True,
) -> None:
    """The engine's logits are eager's for several batch sizes; it tells time's direction, and motion from rest, as
    eager does: a traced temporal shift may have become a constant."""
    if reason := why_unavailable(engine, "cpu"):
        pytest.skip(reason)
    shape: tuple[int, int, int, int, int] = tuple(frames.shape[1:])  # type: ignore[assignment]
    spec = EngineSpec(shape, len(frames), precision, dynamic_batch=dynamic_batch)
    try:
        built = build(engine, variant, backbone, spec)
    except EngineError as error:
        if "processor" not in str(error):
            raise
        pytest.skip(str(error))
    eager = build("eager", variant, backbone, replace(spec, precision="fp32", rewrite=False))
    exact = eager(frames)
    for batch in (len(frames), 1, 2):
        found, wanted = built(frames[:batch]), exact[:batch]
        assert ((found - wanted).abs().max() / exact.std()).item() < LIMIT[precision], (precision, batch)
    centre = frames.shape[2] // 2
    backwards = frames.flip((1, 2))
    frozen = frames[:, :1, centre : centre + 1].expand_as(frames)
    for changed in (backwards, frozen):
        moved, wanted = built(changed) - built(frames), eager(changed) - exact
        if variant == "tsn" and changed is backwards:
            assert wanted.abs().max() < 1e-3 * exact.std()  # it sees no order, and neither must the engine
            assert moved.abs().max() < 1e-3 * exact.std()
        else:
            assert wanted.abs().max() > 5e-3 * exact.std()
            assert (moved - wanted).norm() < max(2 * LIMIT[precision], 1e-3) * wanted.norm(), precision


@pytest.fixture(scope="module")
def rendered(motion_data: Path) -> DataFlags:
    return DataFlags(data=motion_data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "variant"),
    [
        *(("onnx", v) for v in ("tdn", "s_tdm", "l_tdm", "tsn")),
        *(("openvino", v) for v in ("tdn", "tsn")),
        *(pytest.param("openvino", v, marks=pytest.mark.slow) for v in ("s_tdm", "l_tdm")),  # both are in tdn
        pytest.param("aoti", "tdn", marks=pytest.mark.slow),  # a smaller network is compiled in test_engines.py
    ],
)
def test_each_module_survives_export(engine: str, variant: str, rendered: DataFlags, build: Build) -> None:
    check(build, engine, variant, "resnet_small", clips(rendered, variant, 4), dynamic_batch=engine != "aoti")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "segments"),
    [
        ("onnx", 8),
        ("openvino", 16),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("onnx", 16), ("openvino", 8))),
    ],
)
def test_eight_and_sixteen_segments(engine: str, segments: int, rendered: DataFlags, build: Build) -> None:
    check(build, engine, "tdn", "resnet_small", clips(rendered, "tdn", segments))


@pytest.mark.slow  # the same blocks, fewer and narrower, are above
@pytest.mark.parametrize(("engine", "backbone", "segments"), [("openvino", "resnet50", 8), ("onnx", "resnet101", 8)])
def test_the_papers_backbones(engine: str, backbone: str, segments: int, rendered: DataFlags, build: Build) -> None:
    check(build, engine, "tdn", backbone, clips(rendered, "tdn", segments, count=2), dynamic_batch=False)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        pytest.param(e, p, marks=[pytest.mark.slow] if e == "aoti" else [])
        for e in EXPORTING
        for p in supported_precisions(e, "cpu")
        if p not in ("fp32", "fp16")
    ],
)
def test_each_precision(engine: str, precision: str, rendered: DataFlags, build: Build) -> None:
    frames = clips(rendered, "tdn", 4)
    if precision != "int8":
        check(build, engine, "tdn", "resnet_small", frames, precision, dynamic_batch=False)
        return
    if reason := why_unavailable(engine, "cpu"):
        pytest.skip(reason)
    spec = EngineSpec(tuple(frames.shape[1:]), len(frames), "fp32")  # type: ignore[arg-type]
    network, exact = make("tdn"), build("eager", "tdn", "resnet_small", replace(spec, rewrite=False))(frames)
    with create_engine(engine, network, replace(spec, precision="int8"), calibration=[frames]) as quantised:
        difference = ((quantised(frames) - exact).abs().max() / exact.std()).item()
    assert 1e-3 < difference < LIMIT["int8"]  # rounded, and still the network


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_real_clips(engine: str, shared_data: Path, build: Build) -> None:
    check(build, engine, "tdn", "resnet_small", clips(DataFlags(data=shared_data / "ucf10"), "tdn", 8))
