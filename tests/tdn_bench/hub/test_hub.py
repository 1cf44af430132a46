"""Weights by name: a folder, the Hub's own cache in its offline mode, torch.hub; and what is shared, and of what."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.flags import configure
from support.paths import ROOT

from tdn_bench import load_recognizer
from tdn_bench.checkpoint import CheckpointError, load_checkpoint, read_tensors, write_tensors
from tdn_bench.cli import DataFlags, run_command
from tdn_bench.errors import UserError
from tdn_bench.evaluate import main as evaluate
from tdn_bench.hub import names, share
from tdn_bench.hub.card import accuracy_rows, check_evidence, without_place
from tdn_bench.hub.folder import ModelConfig
from tdn_bench.models import create_model
from tdn_bench.predict import main as predict
from tdn_bench.pull import main as pull
from tdn_bench.push import main as push
from tdn_bench.recipes import demo
from tdn_bench.records import make_record, read_record, write_record
from tdn_bench.training.checks import check
from tdn_bench.training.loop import start_network

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

CLASSES = [f"Turning {i} | <script>`x`</script>" for i in range(8)]
MODEL = "tdn_resnet_small"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def checkpoint(small_checkpoint, tmp_path, monkeypatch):
    """As `tdn-bench train` writes it, after epoch 2 of 3, beside its record; the current folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    names.fetch.cache_clear()
    tensors, notes = read_tensors(small_checkpoint)
    del notes["format"]
    path = tmp_path / "run" / "best.safetensors"
    write_tensors(path, tensors, notes | {"classes": CLASSES, "epoch": 2, "top1": 62.5})
    settings = {"model": MODEL, "num_segments": 4, "size": 64, "lr": 0.01, "epochs": 3, "data": "/home/me/secret/set"}
    record = make_record(
        "train",
        "demo <b>",
        figures={"top1_percent": 50.0, "top5_percent": 99.0, "best_top1_percent": 62.5},
        samples={"loss": [3.0, 2.0, 1.0], "top1_percent": [62.5, 50.0], "top1_epoch": [2.0, 3.0]},
        settings=settings,
        device=torch.device("cpu"),
        details={"classes": CLASSES},
    )
    data = {"name": "my|set", "digest": "d" * 64, "videos": 24}
    command = ["tdn-bench", "train", "demo", "--data", "/home/me/secret/set"]
    write_record(replace(record, data=data, command=command), path.parent)
    return path


@pytest.fixture
def folder(checkpoint, tmp_path):
    """What would be pushed."""
    flags = [str(checkpoint), "user/tdn-demo", "--license", "cc-by-nc-4.0", "--dry-run", str(tmp_path / "shared")]
    assert run_command(push, flags) == 0
    return tmp_path / "shared"


@pytest.fixture
def hub_cache(folder, tmp_path, monkeypatch):
    """The folder as user/tdn-demo in the Hub's cache, and the library's offline mode."""
    cache = tmp_path / "hf"
    repo = cache / "models--user--tdn-demo"
    (repo / "refs").mkdir(parents=True)
    for ref in ("main", "v1"):
        (repo / "refs" / ref).write_text(REVISION)
    shutil.copytree(folder, repo / "snapshots" / REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *a, f=hub.snapshot_download, **k: f(*a, cache_dir=cache, **k), raising=False
    )
    return repo / "snapshots" / REVISION


def same_network(network, checkpoint):
    wanted = create_model(MODEL, num_classes=8, num_segments=4)
    load_checkpoint(wanted, checkpoint)
    state = network.state_dict()
    return all(torch.equal(value, state[name]) for name, value in wanted.state_dict().items())


def test_what_is_pushed(folder, checkpoint):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == checkpoint.read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["num_segments"], config["size"], config["num_classes"]) == (MODEL, 4, 64, 8)
    assert config["classes"] == CLASSES
    card = (folder / "README.md").read_text()
    loaded = hub.ModelCard(card).data
    assert (loaded.license, loaded.library_name, loaded.pipeline_tag) == (
        "cc-by-nc-4.0",
        "tdn_bench",
        "video-classification",
    )
    # of epoch 2: its top-1, and no top-5, which the record has of the last epoch only
    assert [result.metric_value for result in loaded.eval_results] == [62.5]
    assert "| my\\|set | validation | 1 × 1 | 64 | – | 62.50 | – | `tdn-bench train` |" in card
    assert "50.00" not in card
    assert "99.00" not in card
    assert "<b>" not in card
    assert "secret" not in card.replace("…/set", "")
    assert "lr 0.01" in card
    assert f"torch {torch.__version__}" in card


def test_create_model_from_a_folder(folder, checkpoint):
    network = create_model(MODEL, weights=f"local-dir:{folder}")
    assert network.num_segments == 4
    assert same_network(network, checkpoint)
    assert same_network(create_model(MODEL, num_classes=8, weights=f"local-dir:{folder}"), checkpoint)
    assert create_model(MODEL, num_segments=6, weights=f"local-dir:{folder}").num_segments == 6
    assert tuple(load_recognizer(f"local-dir:{folder}").classes) == tuple(CLASSES)


def test_create_model_from_the_hub(hub_cache, checkpoint, capsys):
    assert same_network(create_model(MODEL, weights="hf-hub:user/tdn-demo"), checkpoint)
    assert same_network(create_model(MODEL, weights="hf-hub:user/tdn-demo@v1"), checkpoint)
    with pytest.raises(CheckpointError, match=r"hf-hub:user/other: not on this machine, and the Hub cannot be reached"):
        create_model(MODEL, weights="hf-hub:user/other")
    assert run_command(pull, ["user/tdn-demo", "--out", "pulled"]) == 0
    assert f"{MODEL}, 8 classes, T = 4, 64 pixels\ncheckpoint: pulled/model.safetensors" in capsys.readouterr().out
    assert Path("pulled/model.safetensors").read_bytes() == checkpoint.read_bytes()
    assert run_command(pull, ["user/tdn-demo", "--out", "pulled"]) == 2
    assert "--out pulled: exists already" in capsys.readouterr().err


def test_a_command_takes_a_name(folder, motion_data, capsys):
    flags = ["--checkpoint", f"local-dir:{folder}", "--data", str(motion_data), "--workers", "1", "--device", "cpu"]
    assert run_command(evaluate, flags) == 2  # the names are others, as it knows from the folder
    assert "not of the same classes: class 0 is 'Turning 0 | " in capsys.readouterr().err
    assert run_command(evaluate, ["--checkpoint", "local-dir:nowhere", "--data", str(motion_data)]) == 2
    assert "error: local-dir:nowhere: no such folder" in capsys.readouterr().err
    clip = next((motion_data / "20bn-something-something-v2").iterdir())
    assert run_command(predict, [str(clip), "--checkpoint", f"local-dir:{folder}", "--device", "cpu"]) == 0
    assert capsys.readouterr().err.count("taken for") == 0  # the folder says its network


@pytest.mark.parametrize(
    ("weights", "model", "options", "match"),
    [
        ("local-dir:shared", "tsn_resnet_small", {}, "is a tdn_resnet_small, not a tsn_resnet_small"),
        ("local-dir:shared", MODEL, {"num_classes": 5}, "knows 8 classes, not 5.*load_backbone.*--finetune"),
        ("hf-hub:no-slash", MODEL, {}, "no-slash: no repository's name"),
        ("hf-hub:a/b/c", MODEL, {}, "no repository's name"),
        ("hf-hub:../x", MODEL, {}, "no repository's name"),
        ("shared/model.safetensors", MODEL, {}, "load_checkpoint takes a file"),
        ("local-dir:shared/config.json", MODEL, {}, "is not a folder"),
    ],
)
def test_wrong_names(folder, weights, model, options, match):
    with pytest.raises(UserError, match=match):
        create_model(model, weights=weights, **options)


def test_no_name_and_no_number_of_classes():
    with pytest.raises(ValueError, match="num_classes is missing"):
        create_model(MODEL)
    with pytest.raises(ValueError, match="unknown model"):
        create_model("tdn_resnet51", weights="local-dir:nowhere")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "is no configuration of this project's"),
        (lambda f: edit(f, size=224), r"config.json and model.safetensors disagree \(size 224 and 64\)"),
        (lambda f: edit(f, classes=CLASSES[::-1]), "disagree .other classes"),
        (lambda f: edit(f, num_classes=9), "num_classes is 9, its classes 8"),
        (lambda f: edit(f, num_segments="4"), "gives num_segments as '4'"),
        (lambda f: edit(f, model="evil\x1b[2J"), "unknown model"),
        (lambda f: damage(f / "model.safetensors"), "is damaged"),
        (lambda f: (f / "model.safetensors").write_text("<html>"), "is a web page"),
    ],
)
def test_damaged_folders_are_one_line(folder, change, match):
    change(folder)
    with pytest.raises(UserError, match=match) as caught:
        create_model(MODEL, weights=f"local-dir:{folder}")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def test_a_card_takes_no_other_networks_figures(checkpoint):
    config = ModelConfig.of(checkpoint)
    (path,) = checkpoint.parent.glob("train-*.json")
    record = read_record(path)
    check_evidence(checkpoint, config, [record])
    for other, match in (
        (replace(record, kind="throughput"), "takes records of train and evaluate"),
        (replace(record, settings={**record.settings, "model": "tsn_resnet_small"}), "another network"),
        (replace(record, details={"classes": CLASSES[1:]}), "other classes"),
        (replace(record, samples={**record.samples, "top1_percent": [62.4, 50.0]}), "another run"),
        (replace(record, samples={**record.samples, "loss": [3.0]}), "another run"),
        (replace(record, kind="evaluate"), "does not say of which file"),
        (replace(record, kind="evaluate", details={**record.details, "checkpoint_sha256": "0" * 64}), "evaluate it"),
    ):
        with pytest.raises(UserError, match=match):
            check_evidence(checkpoint, config, [other])


def test_a_card_from_an_evaluation(checkpoint, motion_data, capsys):
    tensors, notes = read_tensors(checkpoint)
    classes = DataFlags(data=motion_data).open(progress=False).classes
    del notes["format"]
    write_tensors(Path("own.safetensors"), tensors, notes | {"classes": classes})
    flags = ["--checkpoint", "own.safetensors", "--data", str(motion_data), "--device", "cpu", "--limit", "4"]
    assert run_command(evaluate, [*flags, "--results", "records"]) == 0
    (path,) = Path("records").glob("*.json")
    flags = ["own.safetensors", "user/own", "--license", "mit", "--dry-run", "out"]
    assert run_command(push, flags) == 2
    assert "no record of its training lies beside it; name it by --record" in capsys.readouterr().err
    assert not Path("out").exists()
    assert run_command(push, [*flags, "--record", str(path)]) == 0
    (row,) = accuracy_rows(Path("own.safetensors"), [read_record(path)])
    assert row["top1"] == read_record(path).figures["top1_percent"]
    card = Path("out/README.md").read_text()
    assert "(a part: 8 of 24 videos)" in card
    assert str(motion_data.parent) not in card


def test_what_cannot_be_pushed(checkpoint, monkeypatch, capsys):
    flags = [str(checkpoint), "user/x", "--license", "mit"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_token", lambda: None, raising=False)
    assert run_command(push, flags) == 2
    assert "nobody is logged in at the Hub" in capsys.readouterr().err
    for wrong, said in (
        ([str(checkpoint), "nouser", "--license", "mit"], "nouser: no repository's name"),
        ([str(checkpoint), "user/x", "--license", "MIT; evil"], "--license MIT; evil: write it as the Hub does"),
        (["missing.safetensors", "user/x", "--license", "mit"], "missing.safetensors: no such checkpoint file"),
        ([*flags, "--dry-run", str(checkpoint.parent)], "exists already"),
    ):
        assert run_command(push, wrong) == 2
        assert said in capsys.readouterr().err


def test_a_push_makes_the_repository_and_uploads_the_folder(checkpoint, monkeypatch, capsys):
    done = []

    class FakeApi:
        def create_repo(self, repo, **options):
            done.append((repo, options))
            return f"https://hub.example/{repo}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            done.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir()), commit_message))
            if "fail" in repo_id:
                raise hub.errors.HfHubHTTPError("the disk of the Hub is full\nsecond line", response=FakeResponse())

    class FakeResponse:
        headers, status_code, request = {}, 507, None

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_token", lambda: "a token", raising=False)
    monkeypatch.setattr(hub, "HfApi", FakeApi, raising=False)
    flags = ["--license", "mit", "--private", "--message", "first"]
    assert run_command(push, [str(checkpoint), "user/good", *flags]) == 0
    assert "pushed: https://hub.example/user/good" in capsys.readouterr().out
    files = ["README.md", "config.json", "model.safetensors"]
    assert done == [("user/good", {"private": True, "exist_ok": True}), ("user/good", files, "first")]
    assert run_command(push, [str(checkpoint), "user/fail", *flags]) == 2
    said = capsys.readouterr().err
    assert "error: hf-hub:user/fail: the disk of the Hub is full" in said
    assert "second line" not in said


def test_without_the_library(checkpoint, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    assert run_command(push, [str(checkpoint), "user/x", "--license", "mit"]) == 2
    assert "pip install huggingface_hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/me/set", "…/set"),
        ("--data=/home/me/set/", "--data=…/set"),
        ("../../x/y", "…/y"),
        ("~me/z", "…/z"),
        ("runs/demo", "runs/demo"),
        ("--lr", "--lr"),
        ("a=/b/c", "a=/b/c"),
        (r"C:\Users\me\x", "…/x"),
    ],
)
def test_cards_name_no_folders_of_a_disk(word, shown):
    assert without_place(word) == shown


def test_training_starts_from_a_name(folder, motion_data, tmp_path):
    recipe = configure(demo(), data=motion_data, output=tmp_path / "run", device="cpu", workers=1)
    check(named := configure(recipe, finetune=Path(f"local-dir:{folder}")))
    network, wanted = start_network(named, ["a", "b", "c"]).state_dict(), read_tensors(folder / "model.safetensors")[0]
    assert all(torch.equal(network[n], wanted[n]) for n in network if not n.startswith("classifier."))
    with pytest.raises(UserError, match="local-dir:nowhere: no such folder"):
        check(configure(recipe, checkpoint=Path("local-dir:nowhere")))


def test_torch_hub(folder, checkpoint):
    network = torch.hub.load(str(ROOT), MODEL, source="local", weights=f"local-dir:{folder}")
    assert same_network(network, checkpoint)
    assert torch.hub.load(str(ROOT), "tsn_resnet_small", source="local", num_classes=3).classifier.out_features == 3
    program = (
        f"import torch; print(torch.hub.load({str(ROOT)!r}, 'tdn_resnet50', source='local', num_classes=174).variant)"
    )
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], env=alone, capture_output=True, text=True, timeout=120)
    assert done.stdout == "tdn\n", done.stderr


def test_folders_get_their_name_when_they_are_whole(checkpoint, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(share.shutil, "copyfile", full)
    with pytest.raises(UserError, match=r"out: cannot be written .No space left on device"):
        share.write_folder(Path("out"), checkpoint, "user/x", [], "mit")
    assert not Path("out").exists()
    assert [path.name for path in Path(".").iterdir()] == ["run"]
