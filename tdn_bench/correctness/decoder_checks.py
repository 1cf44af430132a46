"""One video by every decoder: are the frames those asked for, and do the pictures look as they should?

Frames are told apart by the numbers that odd clips carry in their pictures. In any other video a frame is wrong where
it looks like its neighbour in time. Pictures are compared with `decoder_reference`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import log10

import numpy as np

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip
from pipelines.loader import Decoder
from pipelines.manifest import OK, Video
from pipelines.odd_clips import OddClip, read_numbers
from pipelines.plan import ClipPlan, center_crop, plan_evaluation, plan_training, three_windows
from pipelines.sampling import random_frame_indices
from tdn_bench.correctness.decoder_reference import NEIGHBOURS, Truth, reference_pictures

SPEC = ClipSpec(num_segments=4, size=112, crop_scales=(1.0, 0.875))
REFERENCE = "reference"
MIN_PSNR_DB = 25.0  # against the reference; less is another picture, or other colours
SUSPECT_DB = 34.0  # worth a line: BT.709 taken for BT.601, chroma a pixel off
NEARER_DB = 3.0  # by so much nearer to a neighbour in time than to the frame asked for is the wrong frame
MAX_DB = 99.0  # of equal pictures


@dataclass
class Returned:
    """What one backend returned for one video: how many right frames, (wanted, got) of the wrong ones, and the reason
    of every plan that it refused."""

    right: int = 0
    wrong: list[tuple[int, int]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """wrong, refused or exact."""
        return "wrong" if self.wrong else "refused" if self.refused else "exact"

    def __str__(self) -> str:
        if self.wrong:
            wanted, got = self.wrong[0]
            return f"wrong: wanted {wanted}, got {got} ({len(self.wrong)} of {self.right + len(self.wrong)})"
        return f"refused: {'; '.join(dict.fromkeys(self.refused))}" if self.refused else "exact"


@dataclass
class Pixels:
    """How two decoders' pictures differ, plan by plan."""

    psnr_db: list[float] = field(default_factory=list)
    difference: list[float] = field(default_factory=list)  # mean of |a − b|, levels of 0 … 255

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """One plan's pictures by both, uint8 arrays of one shape."""
        self.psnr_db.append(psnr_db(a, b))
        self.difference.append(float(np.abs(a.astype(np.int16) - b).mean()))


@dataclass
class Case:
    """One video by every backend; `scan` is what its scan got wrong."""

    name: str
    returned: dict[str, Returned]
    scan: list[str] = field(default_factory=list)
    pixels: dict[str, Pixels] = field(default_factory=dict)  # by pair, "pyav–reference"

    def lowest_db(self, backend: str) -> float:
        """The PSNR of its plan that is farthest from the reference; MAX_DB where none was compared."""
        pair = self.pixels.get(f"{backend}–{REFERENCE}")
        return min(pair.psnr_db) if pair is not None else MAX_DB

    @property
    def false_pictures(self) -> list[str]:
        """The backends whose pictures are not the reference's."""
        return [backend for backend in self.returned if self.lowest_db(backend) < MIN_PSNR_DB]


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape, at most MAX_DB."""
    error = float(np.mean((a.astype(np.float32) - b) ** 2))
    return min(MAX_DB, 10 * log10(255**2 / error)) if error else MAX_DB


def check_video(video: Video, decoders: Mapping[str, Decoder], seed: int, clip: OddClip | None = None) -> Case:
    """Frames and pixels of one video by `decoders`, which are made for SPEC; with `clip`, the odd clip that it is, also
    the numbers in its frames and its scan. `seed` is of the frames and crops that are drawn."""
    if video.file.status != OK:
        case = Case(video.id, {b: Returned(refused=[video.file.status]) for b in decoders})
        if clip is not None:
            case.scan.append(f"status {video.file.status}, not {OK}")
        return case
    plans = pixel_plans(video, seed)
    truth = reference_pictures(video, plans, SPEC.size)
    case = Case(video.id, {b: Returned() for b in decoders})
    if clip is not None:
        case.returned = {b: check_numbers(clip, video, decoder, seed) for b, decoder in decoders.items()}
        case.scan = check_scan(clip, video, truth)
    check_pixels(case, video, plans, decoders, truth)
    return case


def decode(decoder: Decoder, plans: Sequence[ClipPlan]) -> list[np.ndarray | BadClip]:
    """The pictures of each plan, uint8 (T·L, size, size, C), or why there are none."""
    clips = decoder(plans)
    return [c if isinstance(c, BadClip) else c.flatten(0, 1).cpu().numpy() for c in clips]


# ---- frames: the numbers that they carry


def numbered_plans(video: Video, seed: int) -> list[ClipPlan]:
    """Plans for every odd way to ask: the ends, one frame over and over, any in any order; whole pictures and centre
    crops by turns, flipped or not. The number can be read in all of them."""
    count, width, height = video.file.num_frames, video.file.width, video.file.height
    rng = np.random.default_rng(seed)
    shape = SPEC.num_segments, SPEC.frames_per_segment
    total = shape[0] * shape[1]
    frames = [
        plan_evaluation(video, SPEC).frames,
        *(random_frame_indices(count, SPEC.num_segments, rng) for _ in range(2)),
        np.arange(total).clip(max=count - 1),
        np.arange(count - total, count).clip(min=0),
        np.full(total, count - 1),
        np.repeat([0, count - 1], [1, total - 1]),
        rng.integers(count, size=total),
        np.sort(rng.integers(count, size=total)),
        np.sort(rng.permutation(count)[:total].repeat(-(-total // min(count, total)))[:total]),
    ]
    resized, windows = three_windows(width, height, SPEC.size)
    crop = center_crop(width, height, SPEC.crop_ratio)
    plans = []
    for i, wanted in enumerate(frames):
        plan = ClipPlan(video, wanted.reshape(shape), crop, bool(i % 2), video.sample.label)
        if i % 4 >= 2:
            plan = replace(plan, crop=(0, 0, width, height), resized=resized, windows=windows[1:2])
        plans.append(plan)
    return plans


def check_numbers(clip: OddClip, video: Video, decoder: Decoder, seed: int) -> Returned:
    """Read the number in every picture that a backend returns for the plans of `numbered_plans`."""
    plans = numbered_plans(video, seed)
    returned = Returned()
    for plan, pictures in zip(plans, decode(decoder, plans), strict=True):
        if isinstance(pictures, BadClip):
            returned.refused.append(pictures.reason)
            continue
        got = read_numbers(pictures[:, :, ::-1] if plan.flip else pictures)
        for index, number in zip(plan.frames.ravel().tolist(), got, strict=True):
            if index < len(clip.numbers) and clip.numbers[index] == number:
                returned.right += 1
            else:
                returned.wrong.append((clip.numbers[index] if index < len(clip.numbers) else -1, number))
    return returned


def check_scan(clip: OddClip, video: Video, truth: Truth) -> list[str]:
    """What the scan says of a clip and is not so."""
    file = video.file
    found = {
        "status": (file.status, OK),
        "frames": (file.num_frames, len(clip.numbers)),
        "width": (file.width, clip.width),
        "height": (file.height, clip.height),
        "rotation": (file.rotation, clip.rotation),
        "mirrored": (file.mirrored, clip.mirrored),
        "variable rate": (file.variable_rate, truth.variable_rate),
    }
    return [f"{fact} {said}, not {true}" for fact, (said, true) in found.items() if said != true]


# ---- pixels: against the reference, and frames by their looks


def pixel_plans(video: Video, seed: int) -> list[ClipPlan]:
    """An evaluation's plan, training's, and one whose crop starts at odd places, between two samples of chroma."""
    labels = tuple(range(video.sample.label + 1))
    training = [
        plan_training(video, SPEC, seed=seed, epoch=epoch, position=0, flipped_labels=labels) for epoch in range(2)
    ]
    evaluation = plan_evaluation(video, SPEC)
    x, y, side, _ = center_crop(video.file.width, video.file.height, 0.75)
    return [evaluation, *training, replace(evaluation, crop=(x | 1, y | 1, side, side))]


def check_pixels(
    case: Case, video: Video, plans: Sequence[ClipPlan], decoders: Mapping[str, Decoder], truth: Truth
) -> None:
    """Add to `case` how far each two decoders' pictures differ, and frames that are another's by their looks."""
    found: dict[str, list[np.ndarray | BadClip]] = {b: decode(decoder, plans) for b, decoder in decoders.items()}
    for i, (plan, pictures) in enumerate(zip(plans, truth.pictures, strict=True)):
        wanted = plan.frames.ravel().tolist()
        if missing := [n for n in wanted if n not in pictures]:
            case.scan.append(f"frames {video.file.num_frames}, but a player shows no frame {min(missing)}")
            for returned in case.returned.values():
                returned.refused.append(f"not compared: a player shows no frame {min(missing)}")
            return
        sides = {REFERENCE: np.stack([pictures[n] for n in wanted])}
        for backend, clips in found.items():
            clip, returned = clips[i], case.returned[backend]
            if isinstance(clip, BadClip):
                returned.refused.append(clip.reason)
                continue
            sides[backend] = clip
            _judge_looks(returned, wanted, clip, pictures)
        for a, b in combinations([*found, REFERENCE], 2):
            if a in sides and b in sides:
                case.pixels.setdefault(f"{a}–{b}", Pixels()).add(sides[a], sides[b])


def _judge_looks(
    returned: Returned, wanted: Sequence[int], clip: np.ndarray, pictures: Mapping[int, np.ndarray]
) -> None:
    """Count as wrong each picture of `clip` that is nearer to a neighbour of the frame asked for than to that frame."""
    for n, picture in zip(wanted, clip, strict=True):
        near = {m: psnr_db(picture, p) for m, p in pictures.items() if abs(m - n) <= NEIGHBOURS}
        best = max(near, key=near.__getitem__)
        if near[best] > near[n] + NEARER_DB:
            returned.wrong.append((n, best))
        else:
            returned.right += 1
