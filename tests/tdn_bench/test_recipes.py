"""The named recipes: what they claim, and that they can be written down and read back."""

import re

import pytest
import torch
from safetensors.torch import load_file
from support.flags import configure
from support.paths import ROOT

from pipelines.processes import cores
from tdn_bench.cli import parse_kind
from tdn_bench.cli.config_file import write_config
from tdn_bench.errors import UserError
from tdn_bench.recipes import RECIPES, Recipe, sthv2
from tdn_bench.records.published import PUBLISHED
from tdn_bench.train import main
from tdn_bench.training.checks import resolve

PAPERS = [name for name in RECIPES if name not in ("folders", "demo", "demo_fast")]


def parsed(*words: str) -> Recipe:
    return parse_kind({name: make() for name, make in RECIPES.items()}, words, "train")[1]


@pytest.mark.parametrize("name", PAPERS)
def test_the_accuracy_that_a_recipe_names_is_in_its_table(name: str):
    recipe, what = RECIPES[name](), (RECIPES[name].__doc__ or "").splitlines()[0]
    claim = re.search(r"TDN-ResNet(\d+), (\d+) segments: ([\d.]+) % top-1 .*\(Table (\d)\)", what)
    assert claim
    depth, segments, top1, table = claim.groups()
    assert (recipe.model, recipe.clip_spec().num_segments) == (f"tdn_resnet{depth}", int(segments))
    rows = [
        row.top1_percent
        for row in PUBLISHED
        if (row.source, row.variant, row.data) == (table, "tdn", recipe.data.dataset)
        and (row.backbone, row.frames.partition(" × ")[0]) == (f"resnet{depth}", segments)
    ]
    assert rows == [float(top1)]


def test_every_published_network_of_one_t_has_its_recipe():
    rows = {
        (row.data, f"tdn_{row.backbone}", int(row.frames.partition(" × ")[0]))
        for row in PUBLISHED
        if row.variant == "tdn" and row.table in "234" and "+" not in row.frames
    }
    recipes = [RECIPES[name]() for name in PAPERS]
    assert {(r.data.dataset, r.model, r.clip_spec().num_segments) for r in recipes} == rows
    assert len(recipes) == len(rows) == 14


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_called_and_lies_as_its_function(name: str):
    recipe = RECIPES[name]()
    assert recipe.name == name
    assert recipe.output.parts[:2] == ("runs", name)


def test_a_variation_changes_the_network_alone():
    large = RECIPES["sthv2_r101_16f"]()
    assert configure(large, name="sthv2", model="tdn_resnet50", num_segments=None, output=sthv2().output) == sthv2()


def test_the_page_names_every_recipe_as_its_function_does():
    page = (ROOT / "docs/training.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page.partition("## What will it cost?")[0], re.MULTILINE)
    assert rows == [(name, (make.__doc__ or "").splitlines()[0].rstrip(".")) for name, make in RECIPES.items()]


def test_what_is_typed_wins_over_a_file(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('[train.sthv2]\nepochs = 30\nmilestones = [15, 22]\nsave_minutes = 5\ndataset = "sthv1"\n')
    recipe = parsed("sthv2", "--config", str(file), "--epochs", "3")
    assert recipe == configure(sthv2(), epochs=3, milestones=(15, 22), save_minutes=5.0, dataset="sthv1")


def test_an_unknown_key_is_named_with_its_line_and_what_is_like_it(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text("[train.sthv2]\nepochs = 30\nmilestone = [15, 22]\n")
    with pytest.raises(UserError, match=r"line 3: .*'milestone'.*milestones"):
        parsed("sthv2", "--config", str(file))


@pytest.mark.parametrize("name", RECIPES)
def test_a_resolved_recipe_leaves_nothing_open_and_is_read_back(name: str, tmp_path):
    start = tmp_path / "weights.pth"
    start.touch()
    recipe = configure(RECIPES[name](), device="cpu", init=start, batch_size=24)
    resolved = resolve(recipe)
    precision = "fp32" if recipe.precision == "auto" else recipe.precision
    assert (resolved.device, resolved.precision, resolved.data.workers) == ("cpu", precision, cores())
    assert resolved.num_segments == recipe.clip_spec().num_segments
    assert resolved.optimization.lr == recipe.optimization.lr_per_64_clips * 24 / 64
    write_config(tmp_path / "recipe.toml", f"train {name}", resolved)
    assert parsed(name, "--config", str(tmp_path / "recipe.toml")) == resolved
    open_still = ("device", "precision", "workers")
    told = {k: v for k, v in resolved.settings().items() if k not in open_still}
    assert told == {k: v for k, v in recipe.settings().items() if k not in open_still}


def test_the_written_recipe_gives_the_same_weights(motion_data, tmp_path):
    flags = ["--data", str(motion_data), "--model", "tsn_resnet_small", "--device", "cpu", "--batch-size", "8"]
    main(["demo", *flags, "--epochs", "1", "--output", str(tmp_path / "a")])
    main(["demo", "--config", str(tmp_path / "a/recipe.toml"), "--output", str(tmp_path / "b")])
    first, second = (load_file(tmp_path / run / "last.safetensors") for run in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
