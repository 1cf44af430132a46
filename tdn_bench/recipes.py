"""Recipes: a named, complete training run is a function that returns nested, frozen dataclasses.

Every field is a flag of `python -m tdn_bench.train RECIPE` (`--batch-size 32`). Sources: the authors' released
training scripts and the paper's Sec. 4.1 for Something-Something and Kinetics; our own runs for `demo`. For UCF101 and
HMDB51 the authors published accuracies and a part of the settings only: see `ucf101`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from pipelines.clip import ClipSpec
from tdn_bench.cli import DataFlags, LimitFlags, LoaderFlags, known_variant, settings_of

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the weights come from. Without any of these they are random."""

    init: Path | None = None
    """Start the backbone from a file with torchvision's ResNet weights (ImageNet)."""
    checkpoint: Path | None = None
    """Start the whole network from a checkpoint of the same network (this project's or the authors')."""
    finetune: Path | None = None
    """Start all but the classifier from a checkpoint of the same network, trained on other classes (their names do
    not matter). The new classifier learns faster: its weight at 5 times the learning rate, its bias at 10 times."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """SGD and its learning-rate schedule."""

    batch_size: int = 64
    """Clips in a step, over all GPUs."""
    micro_batch_size: int | None = None
    """Clips that one GPU takes at once; a step sums the gradients of as many passes as its clips need (gradient
    accumulation). Less memory, the same step but for batch norm and dropout, which see a pass alone. Default: all."""
    epochs: int = 60
    """Passes over the training set."""
    lr: float | None = None
    """Learning rate. Default: the recipe's, in proportion to the batch size (--lr-per-64-clips)."""
    lr_per_64_clips: float = 0.01
    """Learning rate for 64 clips a step; without --lr that of a step is in proportion (linear rule)."""
    schedule: Literal["step", "cosine"] = "step"
    """How the learning rate falls: in steps, or along a cosine."""
    milestones: tuple[int, ...] = (30, 45, 55)
    """Epochs after which `step` divides the learning rate by 10."""
    warmup_epochs: float = 0
    """Epochs during which the learning rate rises linearly from zero."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay. Biases and batch norm have none."""
    clip_gradient_norm: float = 20.0
    """Largest norm of the gradients; larger ones are scaled down to it."""
    max_nonfinite_steps: int = 10
    """Steps in a row whose loss or gradients are not finite, after which the run stops; in fp32 and bf16 also that many
    in one epoch. A step with such gradients changes nothing."""

    @property
    def peak_lr(self) -> float:
        """The learning rate that the schedule starts from."""
        return self.lr_per_64_clips * self.batch_size / 64 if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class Modern:
    """Training methods that came after the authors' recipe: each off unless it is asked for."""

    ema_decay: float = 0.0
    """Decay of an average of the weights over the steps, such as 0.999, which is then validated and written (EMA).
    0: none."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    mixup_alpha: float = 0.0
    """Mixup: blend each clip with another one of its batch, at a share from Beta(alpha, alpha). 0: none."""
    cutmix_alpha: float = 0.0
    """CutMix: put a box of another clip into each clip, its area from Beta(alpha, alpha). 0: none. With mixup: either,
    at even odds."""
    randaugment: int = 0
    """Operations of RandAugment that change each clip's brightness, contrast or colours, all its frames alike."""
    randaugment_strength: float = 5.0
    """Strength of these operations, up to 10."""
    repeats: int = 1
    """Times that an epoch takes each video, with other frames, crop and flip each time (repeated augmentation)."""
    first_size: int | None = None
    """Height and width of the first epoch's clips, in pixels; they grow to --size (progressive resolution). Validation
    is at the full size. Default: the full size."""
    growing_epochs: int = 0
    """Epochs until training is at the full size. Default: two thirds of all."""

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0


@dataclass(frozen=True, kw_only=True)
class Saving:
    """When checkpoints are written within an epoch; at the end of every epoch one is anyway."""

    save_minutes: float = 10
    """Minutes between checkpoints within an epoch; 0: none."""
    save_steps: int = 0
    """Steps between checkpoints within an epoch; 0: none."""
    keep_checkpoints: int = 3
    """How many checkpoints are kept, the newest; an older one serves where a newer is damaged."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Several processes, as torchrun starts them: one a GPU."""

    sync_batch_norm: bool = False
    """Batch norm over the clips of all GPUs, in place of each GPU's own."""
    rank_timeout_s: float = 600
    """Seconds after which a process that does not answer ends the run."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete training run. Every field is a flag."""

    name: str = "sthv2"
    """Name of the run in its record."""
    model: str = "tdn_resnet50"
    """Network; `tdn-bench list` names them."""
    num_segments: int | None = None
    """T, segments in a clip. Default: the network's own (8; I3D: 32)."""
    size: int = 224
    """Height and width of the network's input, in pixels (at least 64)."""
    crop_ratio: float = 224 / 256
    """Share of the short side that validation's centre crop keeps."""
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    """Shares of the short side that the sides of a training crop take (multi-scale crop)."""
    dropout: float = 0.5
    """Dropout before the classifier."""
    start: Start = field(default_factory=Start)
    optimization: Optimization = field(default_factory=Optimization)
    modern: Modern = field(default_factory=Modern)
    data: DataFlags = field(default_factory=DataFlags)
    part: LimitFlags = field(default_factory=LimitFlags)
    loader: LoaderFlags = field(default_factory=LoaderFlags)
    precision: Precision = "auto"
    """Mixed precision. auto: bf16 on a GPU that is fast at it, fp16 with a gradient scaler on an older one, fp32 on a
    CPU."""
    compile: bool = False
    """Compile the network with torch.compile."""
    checkpoint_activations: bool = False
    """Keep the inputs of the network's blocks alone and compute the rest anew in the backward pass: the same numbers in
    less memory and more time."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""
    evaluate_every: int = 1
    """Epochs between validations (the last epoch is always validated)."""
    seed: int = 0
    """Seed for weights, order and augmentation."""
    output: Path = Path("runs/sthv2")
    """Folder for checkpoints, scalars, the list of bad clips and the record."""
    results: Path | None = None
    """Folder for the record; default: the output folder."""
    track: Literal["wandb", "mlflow", "trackio"] | None = None
    """Also log settings, scalars and the final record to this experiment tracker, if it is installed."""
    processes: Processes = field(default_factory=Processes)
    saving: Saving = field(default_factory=Saving)
    resume: Literal["no", "yes", "auto"] = "no"
    """Go on from the newest checkpoint in the output folder, with the settings of its run. `--resume auto` begins
    where there is none."""
    change: Annotated[tuple[str, ...], arg(aliases=("--allow-changes",))] = ()
    """With --resume: settings that may differ from those of the run (`--change lr batch_size`); `data` is the data set.
    The record notes what was changed, and where in the run."""
    dry_run: bool = False
    """Only say what the run would cost (time, memory, disk), from two real steps; write nothing."""
    overwrite: bool = False
    """Replace the run in the output folder. Its files stay until the new run's first epoch is saved."""

    def clip_spec(self) -> ClipSpec:
        """The clips of training and validation. Raises UserError for an unknown network."""
        variant = known_variant(self.model)
        segments = variant.num_segments if self.num_segments is None else self.num_segments
        return ClipSpec(segments, variant.frames_per_segment, self.size, self.crop_ratio, self.crop_scales)

    def training_spec(self, epoch: int) -> ClipSpec:
        """The clips that an epoch, counted from 0, trains on: their sides grow evenly, in steps of 16 pixels."""
        spec, first = self.clip_spec(), self.modern.first_size
        growing = self.modern.growing_epochs or -(-2 * self.optimization.epochs // 3)
        if first is None or epoch >= growing:
            return spec
        return replace(spec, size=min(spec.size, round((first + (spec.size - first) * epoch / growing) / 16) * 16))

    def settings(self) -> dict[str, Any]:
        """The recipe as a record has it, with the network's own T."""
        settings = settings_of(self) | {"num_segments": self.clip_spec().num_segments, "lr": self.optimization.peak_lr}
        del settings["lr_per_64_clips"], settings["dry_run"]  # which has had its effect; of which no record tells
        return settings


def _variation(recipe: Recipe, name: str, model: str, num_segments: int) -> Recipe:
    """Another backbone or T. The authors state one schedule, batch and learning rate a data set, for all of them; where
    that batch does not fit, `--batch-size` takes the learning rate with it."""
    return replace(recipe, name=name, model=model, num_segments=num_segments, output=Path("runs", name))


def sthv2() -> Recipe:
    """Something-Something V2, TDN-ResNet50, 8 segments: 64.0 % top-1 in the paper (Table 2)."""
    return Recipe()


def sthv1() -> Recipe:
    """Something-Something V1, TDN-ResNet50, 8 segments: 52.3 % top-1 in the paper (Table 2)."""
    return Recipe(name="sthv1", data=DataFlags(dataset="sthv1"), output=Path("runs/sthv1"))


def kinetics400() -> Recipe:
    """Kinetics-400, TDN-ResNet50, 8 segments: 76.6 % top-1 with 30 views in the paper (Table 3)."""
    return Recipe(
        name="kinetics400",
        data=DataFlags(dataset="kinetics400"),
        optimization=Optimization(batch_size=128, epochs=100, milestones=(50, 75, 90), weight_decay=1e-4),
        output=Path("runs/kinetics400"),
    )


def sthv1_16f() -> Recipe:
    """Something-Something V1, TDN-ResNet50, 16 segments: 53.9 % top-1 in the paper (Table 2)."""
    return _variation(sthv1(), "sthv1_16f", "tdn_resnet50", 16)


def sthv1_r101() -> Recipe:
    """Something-Something V1, TDN-ResNet101, 8 segments: 54.1 % top-1 in the paper (Table 2)."""
    return _variation(sthv1(), "sthv1_r101", "tdn_resnet101", 8)


def sthv1_r101_16f() -> Recipe:
    """Something-Something V1, TDN-ResNet101, 16 segments: 55.3 % top-1 in the paper (Table 2)."""
    return _variation(sthv1(), "sthv1_r101_16f", "tdn_resnet101", 16)


def sthv2_16f() -> Recipe:
    """Something-Something V2, TDN-ResNet50, 16 segments: 65.3 % top-1 in the paper (Table 2)."""
    return _variation(sthv2(), "sthv2_16f", "tdn_resnet50", 16)


def sthv2_r101() -> Recipe:
    """Something-Something V2, TDN-ResNet101, 8 segments: 65.8 % top-1 in the paper (Table 2)."""
    return _variation(sthv2(), "sthv2_r101", "tdn_resnet101", 8)


def sthv2_r101_16f() -> Recipe:
    """Something-Something V2, TDN-ResNet101, 16 segments: 66.9 % top-1 in the paper (Table 2)."""
    return _variation(sthv2(), "sthv2_r101_16f", "tdn_resnet101", 16)


def kinetics400_16f() -> Recipe:
    """Kinetics-400, TDN-ResNet50, 16 segments: 77.5 % top-1 with 30 views in the paper (Table 3)."""
    return _variation(kinetics400(), "kinetics400_16f", "tdn_resnet50", 16)


def kinetics400_r101() -> Recipe:
    """Kinetics-400, TDN-ResNet101, 8 segments: 77.5 % top-1 with 30 views in the paper (Table 3)."""
    return _variation(kinetics400(), "kinetics400_r101", "tdn_resnet101", 8)


def kinetics400_r101_16f() -> Recipe:
    """Kinetics-400, TDN-ResNet101, 16 segments: 78.5 % top-1 with 30 views in the paper (Table 3)."""
    return _variation(kinetics400(), "kinetics400_r101_16f", "tdn_resnet101", 16)


def ucf101() -> Recipe:
    """UCF101 from Kinetics-400 (--finetune), TDN-ResNet50, 16 segments: 97.4 % top-1 in the paper (Table 4).

    The accuracy is the mean of three splits; no other backbone or T is published. The authors published neither
    schedule nor dropout of this fine-tuning. Published are the network, the start, the classifier's learning rates,
    momentum and clipping; learning rate, batch, epochs, milestones and dropout are those of TSM's UCF101 fine-tuning,
    on whose code TDN's builds, and the weight decay is Something-Something's. Not yet run.
    """
    return Recipe(
        name="ucf101",
        data=DataFlags(dataset="ucf101"),
        num_segments=16,
        dropout=0.8,
        optimization=Optimization(lr_per_64_clips=0.001, epochs=25, milestones=(10, 20)),
        output=Path("runs/ucf101"),
    )


def hmdb51() -> Recipe:
    """HMDB51 from Kinetics-400 (--finetune), TDN-ResNet50, 16 segments: 76.3 % top-1 in the paper (Table 4).

    The settings are `ucf101`'s, with the same doubts.
    """
    return replace(ucf101(), name="hmdb51", data=DataFlags(dataset="hmdb51"), output=Path("runs/hmdb51"))


def folders() -> Recipe:
    """Your own videos, in a folder a class: TDN-ResNet50, 8 segments, a small batch; made for --finetune.

    The classes are the data's. The learning rate is Something-Something's, scaled down with the batch. No accuracy was
    measured with it.
    """
    return Recipe(
        name="folders",
        data=DataFlags(dataset="folders"),
        optimization=Optimization(batch_size=8, epochs=25, schedule="cosine", warmup_epochs=1),
        output=Path("runs/folders"),
    )


def demo() -> Recipe:
    """A small TDN from fresh weights on the synthetic motion data set, in minutes on two cores."""
    return Recipe(
        name="demo",
        model="tdn_resnet_small",
        num_segments=4,
        size=64,
        crop_ratio=1.0,
        crop_scales=(1.0, 0.875),  # in smaller crops the moving object is often not to be seen
        dropout=0.0,
        optimization=Optimization(batch_size=8, epochs=12, lr_per_64_clips=0.08, schedule="cosine", warmup_epochs=1),
        evaluate_every=4,
        output=Path("runs/demo/tdn"),
    )


def demo_fast() -> Recipe:
    """The demo in less time: bf16, a larger learning rate, an average of the weights."""
    made = demo()
    return replace(
        made,
        name="demo_fast",
        optimization=replace(made.optimization, lr_per_64_clips=0.16, warmup_epochs=0.5),
        modern=Modern(ema_decay=0.98),
        precision="bf16",
        output=Path("runs/demo_fast"),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    make.__name__: make
    for make in (
        *(sthv1, sthv1_16f, sthv1_r101, sthv1_r101_16f),
        *(sthv2, sthv2_16f, sthv2_r101, sthv2_r101_16f),
        *(kinetics400, kinetics400_16f, kinetics400_r101, kinetics400_r101_16f),
        *(ucf101, hmdb51, folders, demo, demo_fast),
    )
}
