"""Experiment trackers: what they are told, and that none of their failures ends a training."""

import sys
import types
from dataclasses import replace

import pytest
from support.flags import configure

from tdn_bench.errors import UserError
from tdn_bench.recipes import demo
from tdn_bench.training import loop, train
from tdn_bench.training.checks import check
from tdn_bench.training.trackers import Tracking


class Fake(types.ModuleType):
    """A module whose every function notes its calls; `fails` names those that raise."""

    def __init__(self, name, fails=()):
        super().__init__(name)
        self.calls, self.fails, self.summary = [], fails, {}

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if name in self.fails:
                raise ConnectionError("the network is away\nsecond line")
            return self

        return call

    def named(self, name):
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.fixture
def install(monkeypatch):
    def install(name, fails=()):
        module = Fake(name, fails)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr("tdn_bench.training.trackers.importlib.util.find_spec", lambda n: n == name or None)
        return module

    return install


@pytest.fixture
def recipe(motion_data, tmp_path):
    flags = {"data": motion_data, "workers": 1, "epochs": 2, "batch_size": 8, "evaluate_every": 1, "device": "cpu"}
    return configure(demo(), output=tmp_path / "run", warmup_epochs=0, **flags)


LOGS = {"wandb": "log", "mlflow": "log_metrics", "trackio": "log"}


@pytest.mark.parametrize("name", LOGS)
def test_a_training_is_told_whole(name, install, recipe):
    fake = install(name)
    result = train(configure(recipe, track=name), progress=False)
    logged = [args[0] for args, _ in fake.named(LOGS[name])]
    assert [log["train/loss"] for log in logged[:2]] == [e.loss for e in result.epochs]
    assert [log["validation/top1"] for log in logged[:2]] == [e.top1 for e in result.epochs]
    assert set(logged[0]) >= {"train/lr", "train/clips_per_s", "train/wait_share"}
    if name != "trackio":
        assert [kwargs["step"] for _, kwargs in fake.named(LOGS[name])[:2]] == [1, 2]
    settings = {
        "wandb": lambda: fake.named("init")[0][1]["config"],
        "trackio": lambda: fake.named("init")[0][1]["config"],
    }
    told = settings.get(name, lambda: fake.named("log_params")[0][0][0])()
    assert float(told["lr"]) == recipe.optimization.peak_lr
    final = fake.summary if name == "wandb" else logged[2]
    assert final["final/top1_percent"] == result.scores.top(1)
    assert fake.calls[-1][0] in ("finish", "end_run")
    if name == "mlflow":
        assert fake.named("log_dict")[0][0][0]["kind"] == "train"


@pytest.mark.parametrize(("name", "fails"), [("wandb", "init"), ("mlflow", "log_metrics"), ("trackio", "finish")])
def test_what_fails_is_said_once_and_the_training_goes_on(name, fails, install, recipe, capsys):
    fake = install(name, [fails])
    result = train(configure(recipe, track=name, epochs=1), progress=False)
    assert len(result.epochs) == 1
    said = capsys.readouterr().err
    assert said.count(f"--track {name}: given up, training goes on (the network is away)") == 1
    assert len(fake.named(fails)) == 1


def test_a_training_that_fails_is_told_as_failed(install, recipe, monkeypatch):
    fake = install("mlflow")

    def broken(*_, **__):
        raise UserError("the loss became nan")

    monkeypatch.setattr(loop, "train_epoch", broken)
    with pytest.raises(UserError):
        train(configure(recipe, track="mlflow"), progress=False)
    assert fake.named("end_run") == [(("FAILED",), {})]


def test_a_resumed_one_is_told_from_its_start(install, recipe, monkeypatch):
    first = train(recipe, progress=False)
    fake = install("trackio")
    longer = replace(configure(recipe, track="trackio"), resume=True)
    train(longer, progress=False)
    logged = [args[0] for args, _ in fake.named("log")]
    assert [log.get("train/loss") for log in logged] == [*(e.loss for e in first.epochs), None]


def test_one_that_is_not_installed_is_refused_before_work(recipe, monkeypatch):
    monkeypatch.setattr("tdn_bench.training.trackers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--track wandb: not installed: pip install wandb"):
        check(configure(recipe, track="wandb"))
    assert not recipe.output.exists()


def test_mlflow_itself(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    tracking = Tracking("mlflow", "a run", {"lr": 0.1, "model": None}, tmp_path)
    tracking.log({"train/loss": 2.0}, 1)
    tracking.log({"train/loss": 1.0}, 2)
    tracking.finish({"top1_percent": 50.0, "nested": {}}, {"kind": "train"})
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"train/loss": 1.0, "final/top1_percent": 50.0}
    assert run.data.params == {"lr": "0.1", "model": "None"}
