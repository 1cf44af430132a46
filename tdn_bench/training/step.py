"""One optimisation step under AMP, the authors' optimiser groups, and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from tdn_bench.recipes import Modern, Optimization
from tdn_bench.training.augment import randaugment
from tdn_bench.training.clock import StepClock
from tdn_bench.training.ema import WeightAverage, tensors_like
from tdn_bench.training.mixing import Mixed, cross_entropy, mix, step_rng


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, *, fresh_classifier: bool = False
) -> list[dict[str, object]]:
    """The authors' optimiser groups: biases of convolutions and linear layers learn twice as fast and do not
    decay; batch norm does not decay. A fresh classifier on a trained backbone learns 5 times (weight) and 10 times
    (bias) as fast."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    fresh_weights: list[nn.Parameter] = []
    fresh_biases: list[nn.Parameter] = []
    for path, module in model.named_modules():
        fresh = fresh_classifier and path.rpartition(".")[2] == "classifier"
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                norms.append(parameter)
            elif name == "bias":
                (fresh_biases if fresh else biases).append(parameter)
            else:
                (fresh_weights if fresh else weights).append(parameter)
    groups = (
        (weights, 1.0, weight_decay),
        (biases, 2.0, 0.0),
        (norms, 1.0, 0.0),
        (fresh_weights, 5.0, weight_decay),
        (fresh_biases, 10.0, 0.0),
    )
    return [
        {"params": params, "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}
        for params, scale, decay in groups
        if params
    ]


def learning_rate(optimization: Optimization, epoch: float) -> float:
    """The learning rate at a point of training, in epochs (fractions count)."""
    if epoch < optimization.warmup_epochs:
        return optimization.peak_lr * epoch / optimization.warmup_epochs
    if optimization.schedule == "step":
        return optimization.peak_lr * 0.1 ** sum(epoch >= m for m in optimization.milestones)
    done = (epoch - optimization.warmup_epochs) / (optimization.epochs - optimization.warmup_epochs)
    return optimization.peak_lr * 0.5 * (1 + math.cos(math.pi * done))


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where tensor cores have it (compute capability 8.0 on), fp16 on older GPUs, fp32 on a CPU."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """AMP in `precision`; of fp32 there is none."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


class StepOutcome(NamedTuple):
    """What one step came to; both are still on the device, so that the host need not wait for them."""

    loss: Tensor  # mean over this process's clips
    gradient_norm: Tensor  # of all processes' gradients, before clipping; not finite: the step changed nothing


class TrainStep:
    """One optimisation step under AMP: forward and backward passes, clipping, update.

    A step whose gradients are not finite changes neither weights, momentum nor batch norm's statistics, whatever the
    precision. On a GPU that is decided there, without a wait. SGD is PyTorch's fused one: the quickest, and the only
    one that can leave a step out so; it differs from the plain one in the last bit of an update.

    Args:
        classifier: Takes uint8 frames (B, T, L, H, W, C), returns logits (B, classes).
        optimization: The recipe's.
        precision: "fp32", "bf16" or "fp16".
        device: Where the classifier lies.
        fresh_classifier: Whether the last layer is new, on a trained backbone.
        modern: The recipe's options of a step; none of them by default.
    """

    def __init__(
        self,
        classifier: nn.Module,
        optimization: Optimization,
        precision: str,
        device: torch.device,
        *,
        fresh_classifier: bool = False,
        modern: Modern | None = None,
    ) -> None:
        self.classifier, self.optimization, self.device = classifier, optimization, device
        self.modern = modern or Modern()
        self.average = WeightAverage(classifier, self.modern.ema_decay) if self.modern.ema_decay else None
        self.precision = precision
        self._ddp: DistributedDataParallel | None = None
        self.clock = StepClock(device)
        self._parameters = dict(classifier.named_parameters())
        groups = parameter_groups(
            classifier, optimization.peak_lr, optimization.weight_decay, fresh_classifier=fresh_classifier
        )
        self.optimizer = torch.optim.SGD(groups, momentum=optimization.momentum, fused=True)
        if optimization.momentum:  # what SGD makes itself stays without values where its first step is left out
            for parameter in self._parameters.values():
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._statistics = _Statistics(classifier)

    @property
    def learning_rate(self) -> float:
        """That of the last step, of parameters that learn no faster than others."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group["lr_scale"]

    def adopt(self, classifier: nn.Module) -> None:
        """From here on call `classifier`: the same network, compiled or spread over processes."""
        self.classifier = classifier
        if isinstance(classifier, DistributedDataParallel):  # with what torch.compile gave within
            self._ddp = classifier
            # a lambda, since DDP reads a function's annotations, and takes none that are text
            classifier.register_comm_hook(self.clock, lambda clock, bucket: _all_reduce(clock, bucket))

    def __call__(self, frames: Tensor, labels: Tensor, epoch: float) -> StepOutcome:
        """One step on uint8 frames (B, T, L, H, W, C) and labels (B,), `epoch` of training done (fractions count).

        With `micro_batch_size` the clips take several passes, whose gradients are summed to those of the mean over all
        clips; processes exchange them after the last one. Batch norm then has the statistics of a pass.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optimization, epoch) * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.keep()
        at_once = self.optimization.micro_batch_size or len(frames)
        frames, partners, own = self._augment(frames, labels)
        passes = list(zip(frames.split(at_once), labels.split(at_once), partners.split(at_once), strict=True))
        losses = [self._accumulate(*clips, own, len(clips[0]) / len(frames), last=False) for clips in passes[:-1]]
        losses.append(self._accumulate(*passes[-1], own, len(passes[-1][0]) / len(frames), last=True))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self.optimization.clip_gradient_norm)
        finite = norm.isfinite()
        self.update(finite)
        self.scaler.update()
        self._statistics.undo_unless(finite)
        if self.average is not None:
            self.average.update()
        self.clock.lap("optimizer")
        return StepOutcome(torch.stack(losses).sum(), norm)

    def update(self, finite: Tensor) -> None:
        """Let SGD take its step, if `finite` () says so; decided on the device."""
        self.optimizer.found_inf = 1 - finite.float()  # type: ignore[attr-defined]  # as GradScaler tells fused ones
        self.optimizer.step()

    def _augment(self, frames: Tensor, labels: Tensor) -> Mixed:
        """The clips as the options change them; without any, as they are."""
        modern = self.modern
        if modern.randaugment:
            frames = randaugment(frames, modern.randaugment, modern.randaugment_strength, step_rng())
        return mix(frames, labels, modern, step_rng()) if modern.mixes else Mixed(frames, labels, 1.0)

    def _accumulate(
        self, frames: Tensor, labels: Tensor, partners: Tensor, own: float, share: float, *, last: bool
    ) -> Tensor:
        """Add the gradients of a part of the clips, `share` of all; return its part of the loss."""
        with nullcontext() if self._ddp is None or last else self._ddp.no_sync():
            with autocast(self.precision, self.device):
                loss = cross_entropy(self.classifier(frames), labels, partners, own, self.modern.label_smoothing)
                loss = loss * share
            self.clock.lap("forward")
            self.scaler.scale(loss).backward()
            self.clock.lap("all_reduce" if self._ddp is not None and last else "backward")
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a later step needs of the earlier ones beside the weights: momentum by the parameters' names, the
        gradient scaler's numbers, and in what precision; the average of the weights, None where none is kept."""
        momentum = {
            name: buffer
            for name, parameter in self._parameters.items()
            if (buffer := self.optimizer.state[parameter].get("momentum_buffer")) is not None
        }
        average = None if self.average is None else self.average.state_dict()
        scaler = self.scaler.state_dict()
        return {"momentum": momentum, "scaler": scaler, "precision": self.precision, "average": average}

    def load_state_dict(self, state: object) -> None:
        """Go on from what `state_dict` gave, on the CPU; all of it is looked at before any is taken. The scaler of
        another precision is left out. Raises ValueError, with what is wrong in words."""
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            raise ValueError("its optimiser's state is not whole")
        momentum, wanted = state["momentum"], self.state_dict()["momentum"]
        # a run that had no momentum and gets some, or the other way round, begins anew
        momentum = tensors_like("momentum", momentum, wanted) if momentum != {} and wanted else {}
        if not all(m.isfinite().all() for m in momentum.values()):
            raise ValueError("its momentum is not finite")
        fresh, scaler, same = self.scaler.state_dict(), state["scaler"], state["precision"] == self.precision
        if same and not (isinstance(scaler, dict) and scaler.keys() == fresh.keys() and are_numbers(scaler.values())):
            raise ValueError("its gradient scaler's state is not whole")
        if self.average is not None and state["average"] is not None:  # a run that had none begins one
            self.average.load_state_dict(state["average"])
        if same and fresh:
            self.scaler.load_state_dict(scaler)
        for name, value in momentum.items():
            self.optimizer.state[self._parameters[name]]["momentum_buffer"].copy_(value)


def are_numbers(values: Iterable[object]) -> bool:
    """Whether all are finite numbers that are not negative."""
    return all(isinstance(v, int | float) and type(v) is not bool and 0 <= v < math.inf for v in values)


class _Statistics:
    """Batch norm's running statistics: those of a step that is left out may not be finite either."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        self._before = torch.empty(0)

    def _flat(self) -> Tensor:
        return torch.cat([b.flatten() for b in self._buffers])

    def keep(self) -> None:
        if self._buffers:
            self._before = self._flat()

    @torch.no_grad()
    def undo_unless(self, finite: Tensor) -> None:
        """Go back to what was kept, unless `finite` (); decided on the device."""
        if finite.device.type == "cpu" and finite:
            return  # a CPU knows without a wait
        if self._buffers:
            chosen = torch.where(finite, self._flat(), self._before).split([b.numel() for b in self._buffers])
            parts = [part.view_as(b) for part, b in zip(chosen, self._buffers, strict=True)]
            torch._foreach_copy_(self._buffers, parts)


def _all_reduce(clock: StepClock, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own mean over the processes. When the last bucket comes all gradients are computed: what is left of the
    backward pass is waiting for the exchange."""
    if bucket.is_last():
        clock.lap("backward")
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None: the default group
