"""The steps that measure: what they leave, and what a case that fails does."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tdn_bench.errors import UserError
from tdn_bench.gpu_checks import Run, engine, loader, run_step, train
from tdn_bench.gpu_checks.run import count_flops
from tdn_bench.training.step import StepOutcome


def test_ceilings_and_loader_steps(run: Run) -> None:
    record = run_step("ceilings", run)
    assert record.details["failures"] == []
    assert record.figures["matmul_tflop_per_s"] > 0
    found = loader.loader(run)
    assert found.failures == []
    assert {"pyav_cpu_batch4_clips_per_s", "dali_cpu_batch4_clips_per_s", "dali_over_pyav"} <= found.figures.keys()


def test_flops_are_those_of_the_network(run: Run) -> None:
    network = run.network()
    one = count_flops(network, run.frames(1), backward=False)
    assert count_flops(network, run.frames(2), backward=False) == 2 * one
    assert 2 * one < count_flops(network, run.frames(1), backward=True) < 3.1 * one
    assert next(network.parameters()).device == torch.device("cpu")


def test_train_step_reports_a_case_whose_loss_is_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(run, sizes=replace(run.sizes, train_compiled=()))
    real = train.TrainStep.__call__

    def off_in_bf16(step: train.TrainStep, *arguments: object) -> StepOutcome:
        outcome = real(step, *arguments)
        return outcome._replace(loss=2 * outcome.loss) if step.precision == "bf16" else outcome

    monkeypatch.setattr(train.TrainStep, "__call__", off_in_bf16)
    found = train.train_step(run)
    labels = ["bf16_channels_last", "bf16_contiguous"]
    assert [failure.partition("_eager: losses ")[0] for failure in found.failures] == labels
    assert all("do not end near fp32's" in failure for failure in found.failures)
    assert {key.partition("_eager_")[0] for key in found.samples} == {"fp32_channels_last", "fp32_contiguous"}


def test_engine_step_reports_a_case_that_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(run, sizes=replace(run.sizes, engine_batches=(1,)))
    passed = engine.engine(run, name="eager")
    assert passed.failures == []
    assert passed.figures.keys() >= {"fp32_batch1_ms_per_video", "fp32_batch1_build_s", "gflop_per_video"}
    assert passed.details["fp32_batch1"]["agreement_with_eager_fp32"]["clips"] == 1

    @contextmanager
    def disagree(*_: object, **__: object):
        raise UserError("the engine is not the network")
        yield

    monkeypatch.setattr(engine, "checked_engine", disagree)
    found = engine.engine(run, name="eager")
    assert found.failures == ["eager fp32_batch1: the engine is not the network"]
    assert not found.samples  # what fails its check is not timed
