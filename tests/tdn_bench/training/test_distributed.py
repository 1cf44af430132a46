"""Several processes: what they compute together, and what they say when one of them is lost."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from tdn_bench.records import read_record
from tdn_bench.training.distributed import Agreement, Ranks, distributed

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
FLAGS = ["--model", "tsn_resnet_small", "--workers", "1", "--device", "cpu", "--batch-size", "4"]


def torchrun(
    module: str, flags: list[str], processes: int = 2, restarts: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["--max-restarts", str(restarts), "-m", module]
    return subprocess.run(
        [*command, "demo", *FLAGS, *flags], capture_output=True, text=True, timeout=300, env=ENVIRONMENT | environment
    )


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


SAID = {
    "kill": "lost rank 1 on ",
    "stop": "lost rank 1 on ",
    "raise": "ended because of rank 1 on ",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", SAID)
def test_a_rank_that_is_lost_ends_the_run_and_is_named(motion_data: Path, tmp_path: Path, fault: str) -> None:
    flags = ["--data", str(motion_data), "--output", str(tmp_path / "run"), "--rank-timeout-s", "5", "--epochs", "2"]
    mark = tmp_path / "mark"
    begun = time.monotonic()
    done = torchrun("support.faulty_rank", flags, FAULT=fault, FAULTY_RANK="1", FAULT_MARK=str(mark))
    assert done.returncode != 0
    assert time.monotonic() - begun < 120  # far from what torch would wait, and no limit of speed
    told = [line for line in done.stderr.splitlines() if line.startswith("error: rank 0 on ")]
    if told:  # torchrun may have ended it before it could say
        assert SAID[fault] in told[0], done.stderr
        assert "go on with --resume" in told[0]
    elif fault in ("kill", "stop"):
        pytest.fail(done.stderr[-3000:])
    if fault == "raise":
        assert "error: rank 1 on " in done.stderr
        assert "a.webm" in done.stderr.partition("Root Cause")[2]  # of torchrun's summary
        assert "a.webm: cannot be read; repair it" in done.stderr
    assert not is_alive(int(mark.read_text()))


@pytest.mark.slow
def test_of_several_only_the_one_that_was_killed_is_called_lost(motion_data: Path, tmp_path: Path) -> None:
    flags = ["--data", str(motion_data), "--output", str(tmp_path / "run"), "--rank-timeout-s", "20"]
    where = {"FAULT": "kill", "FAULTY_RANK": "0", "FAULT_MARK": str(tmp_path / "mark")}
    done = torchrun("support.faulty_rank", flags, processes=4, **where)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: rank ")]
    assert any("lost rank 0 on " in line for line in told), done.stderr[-3000:]
    assert not any(f"lost rank {other}" in line or f"; rank {other}" in line for line in told for other in (1, 2, 3))


@pytest.mark.slow
def test_a_killed_rank_is_started_anew_and_the_run_ends_as_an_undisturbed_one(
    motion_data: Path, tmp_path: Path
) -> None:
    flags = ["--data", str(motion_data), "--epochs", "2", "--dropout", "0.5", "--save-steps", "1"]
    whole = torchrun("tdn_bench.train", [*flags, "--output", str(tmp_path / "whole")])
    assert whole.returncode == 0, whole.stderr[-2000:]
    resumed = torchrun(
        "support.faulty_rank",
        [*flags, "--output", str(tmp_path / "run"), "--resume", "auto"],
        restarts=2,
        FAULT="kill",
        FAULTY_RANK="1",
        FAULT_MARK=str(tmp_path / "mark"),
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "resumed after step 2 of epoch 1" in resumed.stdout
    assert_same(tmp_path / "whole", tmp_path / "run")


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    record = read_record(max(folder.glob("train-*.json")))
    return record.samples, load_file(folder / "last.safetensors")


def assert_same(*folders: Path) -> None:
    (first, weights), (second, others) = map(outcome, folders)
    assert first["loss"] == second["loss"]
    assert first["top1_percent"] == second["top1_percent"]
    assert all(weights[name].equal(others[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "more"), [(2, []), (4, []), (2, ["--checkpoint-activations"])])
def test_the_same_losses_on_any_number_of_processes(
    motion_data: Path, tmp_path: Path, processes: int, more: list[str]
) -> None:
    """Of the same global batches. Batch norm's statistics, which are of a process's own clips, are frozen."""
    flags = ["--data", str(motion_data), "--epochs", "2", "--batch-size", "8", "--model", "tdn_resnet_small"]
    for folder, number, others in (("alone", 1, []), ("together", processes, more)):
        done = torchrun("support.frozen_norms", [*flags, *others, "--output", str(tmp_path / folder)], number)
        assert done.returncode == 0, done.stderr[-2000:]
    (alone, weights), (together, spread) = outcome(tmp_path / "alone"), outcome(tmp_path / "together")
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert together["top1_percent"] == alone["top1_percent"]
    for name, tensor in weights.items():
        assert torch.allclose(tensor, spread[name], rtol=1e-3, atol=1e-5), name
    records = [read_record(max((tmp_path / f).glob("train-*.json"))) for f in ("alone", "together")]
    assert records[0].details["confusion"] == records[1].details["confusion"]
    free = {"output": "", "checkpoint_activations": False}
    assert records[0].settings | free == records[1].settings | free
    left = [sorted(re.sub(r"\d.*", "", p.name) for p in (tmp_path / f).iterdir()) for f in ("alone", "together")]
    assert left[0] == left[1]  # the first process alone writes


def agreed(rank: int, port: int, handed_in: list[list[int]], told: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed(torch.device("cpu"), 60) as (ranks, _):
        agreement = Agreement(ranks)
        told.put((rank, [agreement.agree(flags) for flags in handed_in[rank]]))


def test_all_processes_see_the_flags_of_any_one_a_call_later() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    handed_in, context = [[0, 1, 0, 2, 0, 0], [0, 0, 0, 1, 3, 0]], mp.get_context("spawn")
    told = context.Queue()
    processes = [context.Process(target=agreed, args=(rank, port, handed_in, told)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(told.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    wanted = [0, *(a | b for a, b in zip(*handed_in, strict=True))][:-1]
    assert found == {0: wanted, 1: wanted}
    assert [Agreement(Ranks(0, 1)).agree(flags) for flags in handed_in[0]] == handed_in[0]
