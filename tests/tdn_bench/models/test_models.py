"""The networks against the authors' logits, the paper's counts, and slow, obvious formulations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import CASES, case_name, reference_clip, released_state_dict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tdn_bench.checkpoint import load_checkpoint
from tdn_bench.models import FrameClassifier, create_model, list_models
from tdn_bench.models.classifier import IMAGENET_MEAN, IMAGENET_STD
from tdn_bench.models.resnet import RESNET_SMALL, Stage
from tdn_bench.models.temporal_difference import LongTermDifference, ShortTermDifference, TemporalConv


def close(found: Tensor, wanted: Tensor, share: float = 1e-3) -> bool:
    """Equal to within a share of the wanted values' deviation (OFFICIAL: 1e-3)."""
    return bool((found - wanted).abs().max() <= share * wanted.std())


def randomise_batch_norm(module: nn.Module) -> None:
    """Running statistics and scales as after training, so that a forgotten or doubled batch norm shows."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)


@pytest.mark.parametrize("case", CASES, ids=case_name)
@torch.inference_mode()
def test_logits_of_the_released_network(case, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in released_state_dict(case).items()}
    torch.save({"epoch": 3, "arch": case["arch"], "state_dict": state, "best_prec1": 50.0}, tmp_path / "c.pth.tar")
    network = create_model(
        f"tdn_{case['arch']}", num_classes=case["num_classes"], num_segments=case["num_segments"]
    ).eval()
    report = load_checkpoint(network, tmp_path / "c.pth.tar")
    assert report.unused == ("module.base_model.conv1_temp.bias", "module.base_model.conv1_temp.weight")
    wanted = torch.tensor(case["logits"])
    assert close(network(reference_clip(case)), wanted)


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_parameters_of_the_released_network(case):
    with torch.device("meta"):
        network = create_model(
            f"tdn_{case['arch']}", num_classes=case["num_classes"], num_segments=case["num_segments"]
        )
    unread = 64 * 3 * 7 * 7 + 64  # base_model.conv1_temp, which the forward pass never reads
    assert sum(p.numel() for p in network.parameters()) + unread == case["params"]


@pytest.mark.parametrize(
    ("name", "segments", "giga"),
    [
        ("tdn_resnet50", 8, 35.639),
        ("tdn_resnet50", 16, 71.277),
        ("tdn_resnet101", 8, 65.842),
        ("tdn_resnet101", 16, 131.684),
    ],
)
def test_multiply_adds_as_published(name, segments, giga):
    with torch.device("meta"):
        network = create_model(name, num_classes=174, num_segments=segments).eval()
        clip = torch.empty(1, segments, 5, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        network(clip)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, abs=5e-4)


def test_temporal_conv_starts_as_a_shift():
    x = torch.randn(2 * 4, 16, 3, 3)
    clip, y = x.view(2, 4, 16, 3, 3), TemporalConv(16, 4)(x).view(2, 4, 16, 3, 3)
    assert torch.equal(y[:, :-1, :2], clip[:, 1:, :2])
    assert not y[:, -1, :2].any()
    assert torch.equal(y[:, 1:, 2:4], clip[:, :-1, 2:4])
    assert not y[:, 0, 2:4].any()
    assert torch.equal(y[:, :, 4:], clip[:, :, 4:])


def test_long_term_difference_in_training_updates_statistics_once_a_direction():
    module = LongTermDifference(32, 4)
    module(torch.randn(8, 32, 4, 4))
    assert module.squeeze.bn.num_batches_tracked == 1
    assert module.expand.bn.num_batches_tracked == 2


@pytest.mark.parametrize(("segments", "motion_share"), [(8, 0.5), (4, 0.25), (16, 0.25)])
def test_short_term_difference_of_a_still_segment(segments, motion_share):
    module = ShortTermDifference(RESNET_SMALL, segments).eval()
    assert module.motion_share == motion_share
    assert module.rgb_share == 1 - motion_share
    still = torch.randn(2, 1, 3, 64, 64).expand(2, 5, 3, 64, 64)
    moving = still.clone()
    moving[:, 4] += 1
    with torch.inference_mode():
        assert not module(still).any()  # no motion, no signal: the stem has no bias, batch norm starts at zero
        assert module(moving).any()


@given(
    segments=st.integers(2, 6),
    batch=st.integers(1, 2),
    height=st.integers(64, 90),
    width=st.integers(64, 90),
)
@settings(max_examples=6, deadline=None)
def test_any_segments_and_sizes(segments, batch, height, width):
    network = create_model("tdn_resnet_small", num_classes=5, num_segments=segments).eval()
    with torch.inference_mode():
        logits = network(torch.randn(batch, segments, 5, 3, height, width))
    assert logits.shape == (batch, 5)
    assert logits.isfinite().all()


@torch.inference_mode()
def test_tdn_sees_the_order_of_time_and_tsn_does_not():
    torch.manual_seed(0)
    clip = torch.randn(1, 4, 5, 3, 64, 64)
    backwards = clip.flip((1, 2))
    for name, differs in (("tdn_resnet_small", True), ("tsn_resnet_small", False)):
        network = create_model(name, num_classes=5, num_segments=4).eval()
        a, b = network(clip), network(backwards)
        assert ((a - b).abs().max() > 1e-3 * a.std()) == differs


@torch.inference_mode()
def test_videos_of_a_batch_do_not_mix():
    network = create_model("tdn_resnet_small", num_classes=5, num_segments=4).eval()
    clip = torch.randn(3, 4, 5, 3, 64, 64)
    together = network(clip)
    assert close(together, torch.cat([network(c[None]) for c in clip]), 1e-4)


@torch.inference_mode()
def test_frame_classifier_normalises_and_folding_changes_nothing():
    torch.manual_seed(0)
    network = create_model("tdn_resnet_small", num_classes=5, num_segments=4).eval()
    randomise_batch_norm(network)
    frames = torch.randint(0, 256, (2, 4, 5, 64, 64, 3), dtype=torch.uint8)
    before = frames.clone()
    wanted = network(
        (frames / 255 - torch.tensor(IMAGENET_MEAN)).div(torch.tensor(IMAGENET_STD)).permute(0, 1, 2, 5, 3, 4)
    )
    classifier = FrameClassifier(network).eval()
    assert close(classifier(frames), wanted, 1e-4)
    assert torch.equal(frames, before)
    assert close(classifier(frames.float()), wanted, 1e-4)
    folded = classifier.fold_batch_norm()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert close(folded(frames), wanted, 1e-4)
    assert folded.to(torch.bfloat16)(frames).dtype == torch.float32


def test_gradients_reach_every_parameter():
    network = create_model("tdn_resnet_small", num_classes=5, num_segments=4, dropout=0)
    network(torch.randn(2, 4, 5, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_wrong_use_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown model 'tdn'.*tdn_resnet50"):
        create_model("tdn", num_classes=2)
    with pytest.raises(ValueError, match="num_segments must be at least 2, not 1"):
        create_model("tdn_resnet50", num_classes=2, num_segments=1)
    with pytest.raises(ValueError, match="num_classes"):
        create_model("tdn_resnet50", num_classes=0)
    network = create_model("tdn_resnet_small", num_classes=2, num_segments=4)
    with pytest.raises(ValueError, match="4 segments of 5 frames"):
        network(torch.zeros(1, 8, 5, 3, 64, 64))
    with pytest.raises(ValueError, match="at least 64"):
        network(torch.zeros(1, 4, 5, 3, 32, 64))
    assert "tsn_resnet50" in list_models()


def trained(model: str, recompute: bool) -> tuple[list[float], dict[str, Tensor], int]:
    """Losses, weights and buffers of two steps with dropout, and the bytes that the second forward pass kept for its
    backward pass (those inside a checkpoint are not among them)."""
    torch.manual_seed(0)
    network = create_model(model, num_classes=3, num_segments=4, dropout=0.5).train()
    if recompute:
        network.checkpoint_activations()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(2):
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        frames = network.all_frames or network.short_term is not None
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = nn.functional.cross_entropy(
                network(torch.randn(2, 4, 5 if frames else 1, 3, 64, 64)), torch.arange(2)
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, network.state_dict(), sum(kept.values())


@pytest.mark.parametrize("variant", ["tdn", "tea", "tanet", "stm"])
def test_checkpointed_activations_change_no_bit(variant):
    losses, state, kept = trained(f"{variant}_resnet_small", recompute=False)
    others, other_state, less = trained(f"{variant}_resnet_small", recompute=True)
    assert losses == others
    assert state.keys() == other_state.keys()
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    assert {int(v) for k, v in state.items() if k.endswith("num_batches_tracked")} <= {2, 4}  # 4: both directions
    assert less < 0.7 * kept


def test_a_stage_keeps_nothing_anew_without_gradients():
    network = create_model("tsn_resnet_small", num_classes=3, num_segments=2).eval()
    clip = torch.randn(1, 2, 1, 3, 64, 64)
    with torch.no_grad():
        wanted = network(clip)
        network.checkpoint_activations()
        assert all(m.recompute for m in network.modules() if isinstance(m, Stage))
        assert torch.equal(network(clip), wanted)
