"""Turns that workers of the gate might have taken, without any worker."""

import numpy as np
import torch

from tdn_bench.correctness.scores import Scores
from tdn_bench.regression.interleaving import Interleaved

STAGES = {"open_ms": 0.1, "decode_ms": 4.0, "augment_ms": 2.0, "plan_ms": 0.01}
ENGINE = {"infer_ms": 2.0, "path_ms": 5.0}
TIMES = {
    "loader": {"loader_ms": 3.1, **STAGES},
    "train": {"train_ms": 20.0},
    "reference": {"reference_ms": 10.0},
}


class Machine:
    """What the workers would take: TIMES × speed × their own factors, with noise that all share and their own."""

    def __init__(self):
        self.speed, self.noise, self.factors, self.seed = 1.0, 0.01, {}, 0
        self.memory, self.wrong, self.status, self.digest = 1e9, 0, "stable", "d"
        self.base_factors, self.noisy = {}, {}

    def __call__(self, specs, *, videos, rounds, round_s, with_scores, device, budget):
        assert str(device) == "cpu"
        generator = np.random.default_rng(self.seed)
        self.seed += 1
        found = Interleaved()
        names = [spec.name for spec in specs]
        for _ in range(8):
            found.status.append(self.status)
            if self.status != "stable":
                found.reasons.append("others took all")
            shared = generator.lognormal(0, 0.2, 12)
            for name in names:
                factors = self.base_factors if name.startswith("base ") else self.factors
                for figure, ms in TIMES.get(name.removeprefix("base "), ENGINE).items():
                    own = generator.lognormal(0, self.noisy.get(figure, self.noise), 12)
                    values = ms * self.speed * factors.get(figure, 1.0) * shared * own
                    found.times.setdefault(name, {}).setdefault(figure, []).append(values.tolist())
                found.memory.setdefault(name, {}).setdefault("host_bytes", []).append(self.memory)
                found.facts[name] = {"data_digest": self.digest}
        labels = torch.arange(40) % 4
        logits = torch.nn.functional.one_hot(labels, 4).float() + torch.randn(40, 4, generator=torch.Generator()) * 0
        now = logits.clone()
        now[: self.wrong] = logits[: self.wrong].roll(1, 1)
        for name in names:
            if name.removeprefix("base ") not in ("loader", "train", "reference"):
                said = logits if name.startswith("base ") else now
                found.scores[name] = Scores(tuple(map(str, range(40))), said[:, None], labels)
        yield found
