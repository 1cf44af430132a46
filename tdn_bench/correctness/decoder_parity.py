"""Do all decoders return the same frames? Clips whose frames carry numbers, pixels, and a network's answers.

The judge of pixels is slow and obvious, and shares no code with the backends: plain PyAV decodes every frame in order,
NumPy sets it upright, Pillow crops and resizes it.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import combinations
from math import log10
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pipelines.clip import ClipSpec
from pipelines.errors import BadClip, DataError
from pipelines.loader import BadClipPolicy, ClipLoader, Decoder, create_decoder
from pipelines.manifest import JPEG_FRAMES, OK, Manifest, Video, Videos, as_video
from pipelines.odd_clips import OddClip, make_odd_clips, read_numbers, skipped_cases
from pipelines.plan import ClipPlan, center_crop, plan_evaluation, plan_training, three_windows
from pipelines.processes import cores
from pipelines.sampling import random_frame_indices
from tdn_bench.cli.flags import DataFlags, NetworkFlags, pick_device
from tdn_bench.correctness.scores import Scores
from tdn_bench.errors import UserError
from tdn_bench.records.record import check_folder, make_record, write_record

if TYPE_CHECKING:
    from av import VideoFrame
    from PIL.Image import Image

SPEC = ClipSpec(num_segments=4, size=112, crop_scales=(1.0, 0.875))
REFERENCE = "reference"
MIN_PSNR_DB = 25.0  # against the reference; less is another picture, or other colours
SUSPECT_DB = 34.0  # worth a line: BT.709 taken for BT.601, chroma a pixel off
NEARER_DB = 3.0  # by so much nearer to a neighbour in time than to the frame asked for is the wrong frame
NEIGHBOURS = 2  # frames before and after that are looked at
MAX_DB = 99.0  # of equal pictures


@dataclass(frozen=True, kw_only=True)
class Decoders(DataFlags):
    """Decode the same frames by every video decoder that can run here, and compare: the numbers in the frames of odd
    clips, pixels, and what a network says. Exit status 1 where a decoder returned a wrong frame or false pictures."""

    videos: tuple[Path, ...] = ()
    """Videos, or folders of frames, whose pixels are compared too."""
    checkpoint: Path | None = None
    """Also compare what this network says of the data set's videos, by every decoder."""
    subset: Literal["train", "validation", "test"] = "validation"
    """Which videos of the data set."""
    limit: int = 100
    """At most this many videos of the data set, drawn by --seed."""
    odd_clips: bool = True
    """Make the odd clips in a temporary folder and read the numbers in their frames."""
    seed: int = 0
    """Of the frames, crops and videos that are drawn."""
    device: str = "auto"
    """Where DALI decodes, beside the CPU, and the network runs: cuda, cuda:1, cpu; auto takes a GPU where there is
    one."""
    results: Path | None = None
    """Also write a record to this folder."""


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
    """Peak signal-to-noise ratio of two uint8 arrays of one shape, at most MAX_DB."""
    error = float(np.mean((a.astype(np.float32) - b) ** 2))
    return min(MAX_DB, 10 * log10(255**2 / error)) if error else MAX_DB


def open_decoders(spec: ClipSpec, device: torch.device, workers: int) -> dict[str, Decoder]:
    """Every backend that can run here, by name. DALI decodes on the CPU, and on a GPU that `device` names."""
    decoders = {"pyav": create_decoder("pyav", spec, torch.device("cpu"), workers)}
    for where in dict.fromkeys((torch.device("cpu"), device)):
        try:
            decoders[f"dali-{where.type}"] = create_decoder("dali", spec, where, workers)
        except DataError as e:
            print(f"left out: {e}")
            break
    return decoders


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


def decode(decoder: Decoder, plans: Sequence[ClipPlan]) -> list[np.ndarray | BadClip]:
    """The pictures of each plan, uint8 (T·L, size, size, C), or why there are none."""
    clips = decoder(plans)
    return [c if isinstance(c, BadClip) else c.flatten(0, 1).cpu().numpy() for c in clips]


def check_scan(clip: OddClip, video: Video, truth: Truth) -> list[str]:
    """What the scan says of a clip and is not so."""
    file = video.file
    found = {
        "status": (file.status, OK),
        "frames": (file.num_frames, len(clip.numbers)),
        "width": (file.width, clip.width),
        "height": (file.height, clip.height),
        "rotation": (file.rotation, clip.rotation),
        "variable rate": (file.variable_rate, truth.variable_rate),
    }
    return [f"{fact} {said}, not {true}" for fact, (said, true) in found.items() if said != true]


# ---- pixels: against the slow and obvious way


@dataclass
class Truth:
    """The pictures that plans ask for, by number, for every plan; neighbours in time too. And what their times say."""

    pictures: list[dict[int, np.ndarray]]
    variable_rate: bool = False


def reference(video: Video, plans: Sequence[ClipPlan], size: int) -> Truth:
    """Decode every frame in order, and crop and resize those that the plans name, or that lie beside them."""
    near = [{n + d for n in plan.frames.ravel().tolist() for d in range(-NEIGHBOURS, NEIGHBOURS + 1)} for plan in plans]
    truth = Truth([{} for _ in plans])
    times = []
    for number, (time_s, picture) in enumerate(_all_pictures(video)):
        times.append(time_s)
        for plan, numbers, pictures in zip(plans, near, truth.pictures, strict=True):
            if number in numbers:
                pictures[number] = _resized(picture(), plan, size)
    gaps = np.diff(times)
    # AVI keeps no times; what FFmpeg makes of them is no fact of the file
    truth.variable_rate = not video.path.endswith(".avi") and len(gaps) > 0 and gaps.max() > 1.5 * gaps.min()
    return truth


def _all_pictures(video: Video) -> Iterator[tuple[float, Callable[[], Image]]]:
    """Seconds, and what makes the upright picture, of every frame as a player shows them, up to one it cannot."""
    import av

    if video.file.codec == JPEG_FRAMES:
        files = sorted(Path(video.path).glob("*.jp*g"), key=lambda file: (len(file.name), file.name))
        yield from ((float(number), partial(_read_picture, file)) for number, file in enumerate(files))
        return
    with av.open(video.path, metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "NONE"
        try:
            for frame in container.decode(stream):
                yield frame.time or 0.0, partial(_upright, frame)
        except av.error.FFmpegError:
            return


def _read_picture(path: Path) -> Image:
    from PIL import Image

    return Image.open(path).convert("RGB")


def _upright(frame: VideoFrame) -> Image:
    from PIL import Image

    turns = {90: 1, 180: 2, 270: 3}.get(round(frame.rotation) % 360, 0)
    return Image.fromarray(np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns)))


def _resized(picture: Image, plan: ClipPlan, size: int) -> np.ndarray:
    from PIL import Image

    x, y, w, h = plan.crop
    small = picture.crop((x, y, x + w, y + h)).resize(plan.resized or (size, size), Image.Resampling.BILINEAR)
    out = np.asarray(small)
    if plan.flip:
        out = out[:, ::-1]
    (left, top), *_ = plan.windows
    return out[top : top + size, left : left + size]


def check_pixels(
    case: Case, video: Video, plans: Sequence[ClipPlan], decoders: dict[str, Decoder], truth: Truth
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
            for n, picture in zip(wanted, clip, strict=True):
                near = {m: psnr_db(picture, p) for m, p in pictures.items() if abs(m - n) <= NEIGHBOURS}
                best = max(near, key=near.__getitem__)
                if near[best] > near[n] + NEARER_DB:
                    returned.wrong.append((n, best))
                else:
                    returned.right += 1
        for a, b in combinations([*found, REFERENCE], 2):
            if a in sides and b in sides:
                case.pixels.setdefault(f"{a}–{b}", Pixels()).add(sides[a], sides[b])


def pixel_plans(video: Video, seed: int) -> list[ClipPlan]:
    """An evaluation's plan, training's, and one whose crop starts at odd places, between two samples of chroma."""
    labels = tuple(range(video.sample.label + 1))
    training = [
        plan_training(video, SPEC, seed=seed, epoch=epoch, position=0, flipped_labels=labels) for epoch in range(2)
    ]
    evaluation = plan_evaluation(video, SPEC)
    x, y, side, _ = center_crop(video.file.width, video.file.height, 0.75)
    return [evaluation, *training, replace(evaluation, crop=(x | 1, y | 1, side, side))]


def check_video(video: Video, decoders: dict[str, Decoder], seed: int, clip: OddClip | None = None) -> Case:
    """Frames and pixels of one video; with `clip` also the numbers and the scan."""
    if video.file.status != OK:
        case = Case(video.id, {b: Returned(refused=[video.file.status]) for b in decoders})
        if clip is not None:
            case.scan.append(f"status {video.file.status}, not {OK}")
        return case
    plans = pixel_plans(video, seed)
    truth = reference(video, plans, SPEC.size)
    case = Case(video.id, {b: Returned() for b in decoders})
    if clip is not None:
        case.returned = {b: check_numbers(clip, video, decoder, seed) for b, decoder in decoders.items()}
        case.scan = check_scan(clip, video, truth)
    check_pixels(case, video, plans, decoders, truth)
    return case


# ---- a network's answers


def score_split(
    manifest: Manifest, videos: Videos, config: Decoders, device: torch.device, names: Sequence[str]
) -> dict[str, Scores]:
    """What the network says of the videos as each backend decodes them; none where a backend decodes no video."""
    from tdn_bench.evaluate import score

    network = NetworkFlags(checkpoint=config.checkpoint).resolved()
    classifier = network.build(len(manifest.classes), device)
    found = {}
    for name in names:
        backend, _, where = name.partition("-")
        loader = ClipLoader(
            videos, network.clip_spec(), 8, backend=backend, device="cpu" if where != "cuda" else device,
            workers=config.workers, policy=BadClipPolicy(max_share=1),
        )  # fmt: skip
        with loader, torch.inference_mode():
            try:
                found[name] = score(lambda frames: classifier(frames.to(device)), loader.epoch())
            except DataError as e:  # a backend may know none of the split's codecs
                print(f"  {name}: {e}")
    return found


def compare_scores(a: Scores, b: Scores) -> dict[str, float]:
    """On the videos of both: how far accuracies, classes and softmax scores differ."""
    both = sorted(set(a.ids) & set(b.ids))
    if not both:
        return {"videos": 0}
    one, other = (_only(scores, both) for scores in (a, b))
    p, q = one.probabilities(), other.probabilities()
    figures: dict[str, float] = {"videos": len(both)}
    if (one.labels >= 0).any():
        figures["top1_change_percent"] = other.top(1) - one.top(1)
    figures["same_class_percent"] = 100 * (p.argmax(1) == q.argmax(1)).double().mean().item()
    figures["max_score_difference"] = (p - q).abs().max().item()
    return figures


def _only(scores: Scores, ids: Sequence[str]) -> Scores:
    place = {name: i for i, name in enumerate(scores.ids)}
    rows = torch.tensor([place[name] for name in ids])
    return Scores(tuple(ids), scores.logits[rows], scores.labels[rows])


# ---- the command


def run(config: Decoders) -> None:
    """Compare and print. Ends with SystemExit(1) where a backend returned a wrong frame or false pictures."""
    device = pick_device(config.device)
    if config.results is not None:
        check_folder("--results", config.results)
    manifest, drawn = _open_data(config)
    decoders = open_decoders(SPEC, device, config.workers or cores())
    cases: list[Case] = []
    if config.odd_clips:
        with tempfile.TemporaryDirectory(prefix="odd-clips-") as folder:
            for clip in make_odd_clips(Path(folder)):
                cases.append(check_video(as_video(clip.path, clip.name), decoders, config.seed, clip))
        for name, reason in skipped_cases().items():
            print(f"left out: {name}: {reason}")
    named = [as_video(path, str(path)) for path in config.videos]
    cases += [check_video(video, decoders, config.seed) for video in [*named, *(drawn or ())]]
    for decoder in decoders.values():
        decoder.close()
    print_cases(cases, list(decoders))
    answers: dict[str, dict[str, float]] = {}
    if config.checkpoint is not None:
        assert manifest is not None
        assert drawn is not None
        scores = score_split(manifest, drawn, config, device, list(decoders))
        answers = {f"{a}–{b}": compare_scores(scores[a], scores[b]) for a, b in combinations(scores, 2)}
        for pair, answer in answers.items():
            print(f"{pair}: " + ", ".join(f"{key} {value:.4g}" for key, value in answer.items()))
    if config.results is not None:
        figures = figures_of(cases, list(decoders))
        figures |= {pair: figures.get(pair, {}) | answer for pair, answer in answers.items()}
        record = make_record(
            "parity", "decoders", figures=figures, samples={},
            settings=asdict(config), device=device, manifest=manifest,
            details={"cases": [_details(case) for case in cases]},
        )  # fmt: skip
        print(f"record: {write_record(record, config.results)}")
    if any(r.wrong for case in cases for r in case.returned.values()) or any(case.false_pictures for case in cases):
        raise SystemExit(1)


def _open_data(config: Decoders) -> tuple[Manifest | None, Videos | None]:
    """The data set that the flags name, if any, and the videos drawn from it. Raises UserError."""
    if config.limit < 1:
        raise UserError(f"--limit {config.limit}: must be at least 1")
    for path in config.videos:
        if not path.exists():
            raise UserError(f"--videos {path}: no such file or folder")
    if config.data is None and config.manifest is None and config.train_list is None and config.val_list is None:
        if config.checkpoint is not None:
            raise UserError("--checkpoint needs labelled videos; name them by --data DIR or --manifest FILE")
        if not config.odd_clips and not config.videos:
            raise UserError("nothing to compare: --no-odd-clips, and neither --videos nor --data is given")
        return None, None
    manifest = config.open()
    videos = manifest.split(config.subset)
    if not videos:
        raise UserError(f"--subset {config.subset}: {manifest.name} has no such videos")
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(videos))[: config.limit])
    return manifest, Videos.of((videos[row] for row in rows), manifest.root)


def print_cases(cases: Sequence[Case], backends: Sequence[str]) -> None:
    """A line a case; then reasons, false scans and the distance of pixels."""
    wide = max((len(case.name) for case in cases), default=0)
    pairs = list(dict.fromkeys(pair for case in cases for pair in case.pixels))
    print(f"{'frames':{wide}s}  " + "  ".join(f"{b:9s}" for b in backends) + "  lowest PSNR, dB: " + ", ".join(pairs))
    for case in cases:
        verdicts = "  ".join(f"{case.returned[b].verdict:9s}" for b in backends)
        lowest = (f"{min(case.pixels[p].psnr_db):{len(p)}.1f}" if p in case.pixels else " " * len(p) for p in pairs)
        print(f"{case.name:{wide}s}  {verdicts}  {'':17s}{'  '.join(lowest)}".rstrip())
    notes: dict[str, list[str]] = {}  # what was found, and where
    for case in cases:
        found = [f"scan: {reason}" for reason in case.scan]
        for backend, returned in case.returned.items():
            if returned.verdict != "exact":
                found.append(f"{backend}: {returned}")
            if (lowest_db := case.lowest_db(backend)) < SUSPECT_DB:
                word = "false" if backend in case.false_pictures else "suspicious"
                found.append(f"{backend}: {word} pictures: {lowest_db:.1f} dB from the reference")
        for note in found:
            notes.setdefault(note, []).append(case.name)
    for note, names in notes.items():
        print(f"{note}: {', '.join(names)}")
    for backend in backends:
        count = Counter(case.returned[backend].verdict for case in cases)
        print(f"{backend}: {', '.join(f'{count[v]} {v}' for v in ('exact', 'refused', 'wrong'))} of {len(cases)}")
    for pair in pairs:
        compared = [case.pixels[pair] for case in cases if pair in case.pixels]
        values = [db for pixels in compared for db in pixels.psnr_db]
        levels = np.mean([d for pixels in compared for d in pixels.difference])
        print(f"{pair}: PSNR median {median(values):.1f} dB, lowest {min(values):.1f} dB; mean difference {levels:.2f}")


def figures_of(cases: Sequence[Case], backends: Sequence[str]) -> dict[str, Any]:
    """Counts of cases by verdict for every backend, and PSNR by pair."""
    figures: dict[str, Any] = {"cases": len(cases), "false_scans": sum(bool(case.scan) for case in cases)}
    for backend in backends:
        count = Counter(case.returned[backend].verdict for case in cases)
        figures[backend] = {verdict: count[verdict] for verdict in ("exact", "refused", "wrong")}
        figures[backend]["false_pictures"] = sum(backend in case.false_pictures for case in cases)
    for pair in dict.fromkeys(pair for case in cases for pair in case.pixels):
        values = [db for case in cases if pair in case.pixels for db in case.pixels[pair].psnr_db]
        figures[pair] = {"psnr_median_db": median(values), "psnr_min_db": min(values)}
    return figures


def _details(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "scan": case.scan,
        "returned": {b: asdict(r) | {"verdict": r.verdict} for b, r in case.returned.items()},
        "pixels": {pair: asdict(pixels) for pair, pixels in case.pixels.items()},
    }
