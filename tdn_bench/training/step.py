"""One optimisation step under AMP, the authors' optimiser groups, and the learning rate's schedule."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdn_bench.recipes import Optimization


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


class TrainStep:
    """One optimisation step under AMP: forward, backward, clipping, update."""

    def __init__(
        self,
        classifier: nn.Module,
        optimization: Optimization,
        precision: str,
        device: torch.device,
        *,
        fresh_classifier: bool = False,
    ) -> None:
        self.classifier, self.optimization, self.device = classifier, optimization, device
        self.precision = precision
        groups = parameter_groups(
            classifier, optimization.peak_lr, optimization.weight_decay, fresh_classifier=fresh_classifier
        )
        self.optimizer = torch.optim.SGD(groups, momentum=optimization.momentum)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def __call__(self, frames: Tensor, labels: Tensor, epoch: float) -> Tensor:
        """One step on uint8 frames (B, T, L, H, W, C) and labels (B,), `epoch` of training done (fractions count).
        Returns the loss, still on the device, so that the host need not wait for it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optimization, epoch) * group["lr_scale"]
        with autocast(self.precision, self.device):
            loss = F.cross_entropy(self.classifier(frames), labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.classifier.parameters(), self.optimization.clip_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()
