"""Long trials of training: killed at random moments, on one process and on two; the counts are printed as JSON.

`make soak` from the root: about 40 minutes on two cores. `python tests/soak.py PART KILLS SEED FOLDER` is one part of
it. Whatever happens to a run, it must end with the weights, losses and accuracies of one that nothing happened to.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipelines.synthetic import make_dataset
from tdn_bench.records import read_record

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
FLAGS = "--model tsn_resnet_small --batch-size 4 --epochs 4 --evaluate-every 2 --workers 1 --dropout 0.5 --lr 0.003"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def start(data: Path, folder: Path, ranks: int) -> subprocess.Popen[str]:
    """The run in `folder`, begun or gone on with; a process group of its own."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command = [*launcher, "tdn_bench.train", "demo", "--data", str(data), "--output", str(folder), *FLAGS.split()]
    command += ["--device", "cpu", "--resume", "auto", "--save-steps", "1", "--backend", "pyav"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=pipe, stderr=subprocess.STDOUT, text=True, process_group=0)


def members(leader: int) -> list[int]:
    """The processes of a group that are alive, in the order of their start."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run left and that is no time."""
    found: dict[str, Any] = {}
    for name in ("last.safetensors", "best.safetensors"):
        with safe_open(folder / name, "pt") as f:
            found[name] = f.metadata(), {k: f.get_tensor(k).numpy().tobytes() for k in f.keys()}  # noqa: SIM118
    record = read_record(max(folder.glob("train-*.json")))
    found["figures"] = {k: record.figures[k] for k in ("top1_percent", "best_top1_percent", "loss", "stand_ins")}
    found["samples"] = {k: record.samples[k] for k in ("loss", "top1_percent", "top1_epoch")}
    found["confusion"] = record.details["confusion"]
    return found


def trial(data: Path, folder: Path, ranks: int, kills: int, chance: random.Random, typical_s: float) -> dict[str, Any]:
    """Kill a run at random moments until it has been killed `kills` times or is finished; then let it end."""
    killed, told = 0, {}
    while True:
        run = start(data, folder, ranks)
        try:
            said, _ = run.communicate(timeout=chance.uniform(0.4, 1.2) * typical_s if killed < kills else 600)
        except subprocess.TimeoutExpired:
            number = chance.choice(SIGNALS)
            group = members(run.pid)
            if ranks == 1 or number != signal.SIGKILL:
                run.send_signal(number)  # torchrun hands it on
            elif chance.random() < 0.5 and len(group) > 1:
                os.kill(chance.choice(group[1:]), number)  # a rank alone: torchrun ends the others
            else:
                os.killpg(run.pid, number)  # power
            killed += 1
            told[number.name] = told.get(number.name, 0) + 1
            said, _ = run.communicate(timeout=120)
            left = members(run.pid)
            if left:
                return {"killed": killed, "error": f"{len(left)} processes left after {number.name}"}
            continue
        if run.returncode == 0:
            return {"killed": killed, "by": told, "stretches": said.count("resumed after")}
        return {"killed": killed, "error": said[-2000:]}


def kills(folder: Path, ranks: int, count: int, seed: int) -> dict[str, Any]:
    """`count` kills, over as many runs as that takes. Returns how many runs ended otherwise than an unkilled one."""
    chance = random.Random(seed)
    data = folder / "data"
    if not data.exists():
        make_dataset(data, train=96, validation=16, workers=1, progress=False)
    whole = folder / f"whole-{ranks}"
    clock = time.monotonic()
    start(data, whole, ranks).communicate()
    typical_s = 0.6 * (time.monotonic() - clock)
    wanted = outcome(whole)
    done = runs = different = 0
    by: dict[str, int] = {}
    while done < count:
        run = folder / f"killed-{ranks}-{runs}"
        found = trial(data, run, ranks, count - done, chance, typical_s)
        done, runs = done + found["killed"], runs + 1
        by = {name: by.get(name, 0) + found.get("by", {}).get(name, 0) for name in {*by, *found.get("by", {})}}
        if "error" in found or outcome(run) != wanted:
            different += 1
            print(f"{run.name}: {found}", flush=True)
    return {"ranks": ranks, "kills": done, "by": by, "runs": runs, "different": different}


def main(words: list[str]) -> int:
    ranks, count, seed = (int(words[i]) if len(words) > i else n for i, n in enumerate((0, 50, 0)))
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(words[3]) if len(words) > 3 else Path(temporary)
        for part in (ranks,) if ranks else (1, 2):
            found = kills(folder, part, count, seed)
            print(json.dumps(found), flush=True)
            wrong += found["different"]
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
