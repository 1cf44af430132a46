"""One video, seen by one network or by several beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.loader import Decoder, create_decoder, decode_videos
from pipelines.plan import ClipPlan, plan_evaluation
from pipelines.processes import cores
from pipelines.video import Video
from tdn_bench.checkpoint import match_classes
from tdn_bench.errors import UserError
from tdn_bench.models import SegmentNetwork
from tdn_bench.recognizer import Trained, load_trained
from tdn_bench.visualizing.grad_cam import Stage, default_stage, grad_cam, middle_frames, to_pixels
from tdn_bench.visualizing.motion import long_term, see_gates, see_motion, short_term
from tdn_bench.visualizing.panels import Histogram, Panel, frame_panel, gate_panels, heat_panel, motion_panels

Show = Literal["grad-cam", "differences", "gates"]
SHOWN: tuple[Show, ...] = get_args(Show)


@dataclass(frozen=True)
class Subject:
    """A trained network to look at. `places` are its own numbers of the first subject's classes."""

    label: str
    trained: Trained
    places: Sequence[int]

    @property
    def network(self) -> SegmentNetwork:
        network = self.trained.classifier.network
        assert isinstance(network, SegmentNetwork)
        return network


@dataclass(frozen=True)
class Clip:
    """What a network reads of a video and says of it: `frames` uint8 (1, T, L, H, W, C), `probabilities` float64
    (classes,) in the first subject's order."""

    plan: ClipPlan
    frames: Tensor
    probabilities: Tensor

    @property
    def pictures(self) -> np.ndarray:
        """uint8 (T, L, H, W, C)."""
        array: np.ndarray = self.frames[0].cpu().numpy()
        return array


@dataclass(frozen=True)
class Looked:
    """What was seen in one video: panels, what is said above them, and (`line`) in the terminal."""

    title: str
    subtitles: Sequence[str]
    panels: Sequence[Panel | Histogram]
    line: str


def load_subjects(checkpoints: Sequence[Path], device: torch.device) -> list[Subject]:
    """The first, and those to set beside it, told apart by the networks' names, or by the files'. Raises as
    `load_trained` does, and CheckpointError where one knows other classes than the first."""
    trained = [load_trained(path, device=device) for path in checkpoints]
    names = [t.network.model for t in trained]
    advice = "compare networks that were trained on the same data set"
    subjects = []
    for path, t in zip(checkpoints, trained, strict=True):
        own = f" ({path.parent.name}/{path.name})" if names.count(t.network.model) > 1 else ""
        order = match_classes(t.classes, trained[0].classes, path, checkpoints[0], advice).order
        t.classifier.requires_grad_(False)  # Grad-CAM needs gradients from the stage on, and of no weight
        subjects.append(Subject(t.network.model + own, t, order or range(len(t.classes))))
    return subjects


@dataclass(frozen=True)
class Looker:
    """Looks at videos with the first of `subjects`, the others beside it. `target` is a class of the first, None for
    the one that it finds likeliest. Made by `open`, which refuses what cannot be shown."""

    subjects: Sequence[Subject]
    stage: Stage
    show: Sequence[Show]
    target: int | None
    device: torch.device
    decoders: dict[ClipSpec, Decoder] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(
        cls,
        subjects: Sequence[Subject],
        *,
        stage: Stage | None = None,
        show: Sequence[Show] = SHOWN[:1],
        target: int | None = None,
        device: torch.device,
    ) -> Iterator[Self]:
        """Raises UserError for differences or gates that the first network has not."""
        first = subjects[0]
        stage = stage or default_stage(first.trained.network.size)
        if "differences" in show:
            short_term(first.network, first.label)
        if "gates" in show:
            long_term(first.network, first.label, stage)
        with ExitStack() as stack:
            looker = cls(subjects, stage, show, target, device)
            for spec in {s.trained.clip_spec(): None for s in subjects}:
                looker.decoders[spec] = create_decoder("auto", spec, device, cores())
                stack.callback(looker.decoders[spec].close)
            yield looker

    def read(self, video: Video, subject: Subject) -> Clip:
        """Decode a subject's clip of a scanned video, and ask the network. Raises BadClip, UserError for logits that
        are not finite."""
        spec = subject.trained.clip_spec()
        [frames] = decode_videos(self.decoders[spec], [video], spec)
        if isinstance(frames, BadClip):
            raise frames
        frames = frames[None].to(self.device)
        with torch.inference_mode():
            logits = subject.trained.classifier(frames)[0].cpu().double()
        if not logits.isfinite().all():
            raise UserError(f"{subject.trained.network.checkpoint}: gives logits that are not finite; train it again")
        return Clip(plan_evaluation(video, spec), frames, logits.softmax(0)[list(subject.places)])

    def heat(self, subject: Subject, clip: Clip, target: int) -> tuple[np.ndarray, np.ndarray]:
        """Grad-CAM for a class of the first subject over a clip's pictures: float32 (M, H, W), and which of the T·L
        frames each belongs to, int64 (M,)."""
        maps = grad_cam(subject.trained.classifier, clip.frames, subject.places[target], self.stage)
        middles = middle_frames(subject.network, len(maps), clip.frames.shape[2])
        return to_pixels(maps, clip.frames.shape[-2]).cpu().numpy(), middles

    def look(self, video: Video) -> Looked:
        """All that is to be shown of one video. Raises BadClip."""
        first = self.subjects[0]
        clips = [self.read(video, subject) for subject in self.subjects]
        names, top = first.trained.classes, int(clips[0].probabilities.argmax())
        target = top if self.target is None else self.target
        panels: list[Panel | Histogram] = [frame_panel(clips[0].pictures, clips[0].plan.frames, ["frames"])]
        said = []
        for subject, clip in zip(self.subjects, clips, strict=True):
            own = int(clip.probabilities.argmax())
            said.append(f"{subject.label} {names[own]} {clip.probabilities[own]:.0%}")
        if "grad-cam" in self.show:
            beside = list(zip(self.subjects, clips, strict=True))
            for subject, clip in [*beside[1:], beside[0]]:  # as in the paper, which has the full TDN last
                heat, middles = self.heat(subject, clip, target)
                lines = [subject.label, *self._answers(clip, target)]
                panels.append(heat_panel(clip.pictures, clip.plan.frames, heat, middles, lines))
        classifier, frames = first.trained.classifier, clips[0].frames
        if "differences" in self.show:
            panels += motion_panels(see_motion(classifier, frames, short_term(first.network, first.label)))
        if "gates" in self.show:
            panels += gate_panels(see_gates(classifier, frames, *long_term(first.network, first.label, self.stage)))
        order = clips[0].probabilities.argsort(descending=True)[:3].tolist()
        answers = ", ".join(f"{names[i]} {clips[0].probabilities[i]:.0%}" for i in order)
        subtitles = [f"{first.label}: {answers}"]
        if "grad-cam" in self.show:
            subtitles.append(
                f"Grad-CAM at {self.stage} for “{names[target]}”. Colours: share of each row's largest heat"
            )
        return Looked(Path(video.path).name, subtitles, panels, "; ".join(said))

    def _answers(self, clip: Clip, target: int) -> list[str]:
        """The probability of the class that is looked for, and the network's own answer where it is another."""
        names, own = self.subjects[0].trained.classes, int(clip.probabilities.argmax())
        lines = [f"{names[target]} {clip.probabilities[target]:.0%}"]
        return lines if own == target else [*lines, f"its answer: {names[own]} {clip.probabilities[own]:.0%}"]
