"""A network in two parts gives the whole network's logits."""

import pytest
import torch
from support.networks import make, make_frames

from engines import EngineSpec, copy_network
from engines.pytorch import place
from tdn_bench.models.split import first_across, join_segments, split
from tdn_bench.models.variants import VARIANTS

WHOLE = {"i3d", "tsn++", "tconv++", "tsm++", "teinet++"}  # none of their segments stand apart
# Where features of a segment alone give an end, by the paper: TDN's L-TDM in the first block of Res3.
FIRST = {"tdn": (3, 0), "tdn_s123_l45": (4, 0), "tdn_s1_l2345": (2, 0), "tsm": (2, 0), "tea": (2, 0), "tsn": None}


def parts_of(variant: str, rewrite: bool):
    classifier = make(variant)
    frames = make_frames(variant, batch=1)
    spec = EngineSpec(tuple(frames.shape[1:]), 1, rewrite=rewrite)
    network = place(copy_network(classifier, spec, "eager"))
    return network, frames, split(network)


@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - WHOLE))
@torch.inference_mode()
def test_parts_give_the_whole_networks_logits(variant, rewrite):
    network, frames, parts = parts_of(variant, rewrite)
    assert parts is not None
    head, tail = parts
    wanted = network(frames)
    # In the same batches the same sums in the same order: the same bits.
    assert torch.equal(tail(*head(frames[0])), wanted)
    # Segment by segment the library may add up in another order: float32's rounding, as a share of the logits' spread.
    features = [head(frames[:, t]) for t in range(frames.shape[1])]
    got = tail(*join_segments(features))
    assert (got - wanted).abs().max() < 2e-5 * wanted.std()
    assert torch.equal(tail(*join_segments(features)), got)  # nothing that is kept was changed


@pytest.mark.parametrize("variant", FIRST)
def test_the_cut_is_where_segments_meet_first(variant):
    assert first_across(make(variant).network) == FIRST[variant]


@pytest.mark.parametrize("variant", ["tdn", "s_tdm", "tea"])
@torch.inference_mode()
def test_a_segments_features_depend_on_its_own_frames_alone(variant):
    _, frames, parts = parts_of(variant, True)
    assert parts is not None
    other = frames.clone()
    other[:, 1] = 255 - other[:, 1]
    before, after = parts[0](frames[0]), parts[0](other[0])
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[[0, 2, 3]], b[[0, 2, 3]])
        assert not torch.equal(a[1], b[1])


@pytest.mark.parametrize("variant", sorted(WHOLE))
def test_networks_that_keep_no_segments_apart_are_not_split(variant):
    assert split(make(variant)) is None
    assert split(torch.nn.Linear(2, 2)) is None
