"""Show where a network looks: Grad-CAM and motion."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from pipelines.errors import BadClip, printable
from pipelines.finding import find_named, passed_over
from pipelines.scan import as_video
from tdn_bench.cli import parse, pick_device, run_command
from tdn_bench.cli.progress import progress
from tdn_bench.errors import UserError
from tdn_bench.records import check_folder
from tdn_bench.visualizing.grad_cam import Stage
from tdn_bench.visualizing.looking import SHOWN, Looker, load_subjects
from tdn_bench.visualizing.writing import FORMATS, check_formats, not_written, stems, write

EXIT_BAD_VIDEOS = 1
EXAMPLES = (
    "tdn-bench visualize clip.mp4 --checkpoint runs/demo/tdn/best.safetensors",
    "tdn-bench visualize clip.mp4 --checkpoint runs/demo/tdn/best.safetensors --against runs/demo/tsn/best.safetensors",
    "tdn-bench visualize clip.mp4 --checkpoint runs/demo/tdn/best.safetensors --show grad-cam,differences,gates",
    "tdn-bench visualize videos/ --checkpoint runs/demo/tdn/best.safetensors --format mp4,webp --output pictures",
)
COMMON = ("videos", "checkpoint", "against", "stage", "class_name", "show", "format", "output")


@dataclass(frozen=True, kw_only=True)
class Visualize:
    """Show where a network looks in videos: a strip of pictures of each, or an animation. A video that cannot be used
    is named; the others are done, and the exit status is 1."""

    videos: Annotated[Positional[tuple[str, ...]], arg(metavar="VIDEO…")] = ()
    """Files, folders, quoted patterns. A folder with all below it; one of JPEG frames is a video; 'videos/**/*.mp4'."""
    checkpoint: Path
    """Trained weights (.safetensors)."""
    against: UseAppendAction[tuple[Path, ...]] = ()
    """Another checkpoint of the same classes to set beside it, such as TSN or s_tdm; may be given several times."""
    stage: Stage | None = None
    """Where in the network to look. Default: the last stage with at least 7 × 7 cells (res5 of 224 pixels)."""
    class_name: Annotated[str, arg(name="class")] = "top"
    """The class whose evidence Grad-CAM shows, in all networks alike. top: what --checkpoint finds likeliest."""
    show: str = "grad-cam"
    """What to show, with commas between: grad-cam, differences (S-TDM), gates (L-TDM)."""
    format: str = "png"
    """The files to write, with commas between: png (a strip), mp4, webp (animations)."""
    output: Path = Path("runs/visualize")
    """Folder for the pictures. Those of an earlier run on the same videos are replaced."""
    device: str = "auto"
    """cuda, cuda:1 or cpu. auto: a GPU if there is one."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pictures of every video. Ends with SystemExit(1) where some videos could not be used."""
    config = parse(Visualize, argv, "visualize", examples=EXAMPLES, common=COMMON)
    show, formats = chosen("--show", config.show, SHOWN), chosen("--format", config.format, FORMATS)
    if not config.videos:
        raise UserError("no videos named: give files, folders or patterns")
    check_formats(formats)
    check_folder("--output", config.output)
    device = pick_device(config.device)
    subjects = load_subjects([config.checkpoint, *config.against], device)
    target = find_class(config.class_name, subjects[0].trained.classes)
    found = find_named(config.videos)
    videos = not_written(found.videos, config.output)
    if note := passed_over(found.ignored):
        print(note, file=sys.stderr)
    if earlier := len(found.videos) - len(videos):
        print(f"passed over as written by an earlier run: {earlier}", file=sys.stderr)
    if not videos:
        raise UserError("no video is left; name others")
    bad = 0
    with (
        Looker.open(subjects, stage=config.stage, show=show, target=target, device=device) as looker,
        progress("Visualizing", len(videos), "videos") as advance,
    ):
        for path, stem in zip(videos, stems(videos), strict=True):
            try:
                looked = looker.look(as_video(path))
            except BadClip as e:
                print(f"not used: {printable(str(e))}", file=sys.stderr)
                bad += 1
            else:
                written = write(looked, config.output, stem, formats)
                print(printable(f"{path}: {looked.line}: {', '.join(map(str, written))}"), flush=True)
            advance(1)
    if bad == len(videos):
        raise UserError(f"no video could be used, of {bad}")
    if bad:
        print(f"{bad} of {len(videos)} videos could not be used", file=sys.stderr)
        raise SystemExit(EXIT_BAD_VIDEOS)


def chosen(flag: str, text: str, known: Sequence[Any]) -> list[Any]:
    """The words of a list with commas, each once, in the order of `known`. Raises UserError for others, or none."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word not in known]
    if wrong or not words:
        raise UserError(f"{flag} {text!r}: choose from {', '.join(known)}, with commas between")
    return [word for word in known if word in words]


def find_class(name: str, classes: Sequence[str]) -> int | None:
    """The number of a class; None for `top`. Raises UserError for a class that is none, with those that look alike."""
    folded = [c.casefold() for c in classes]
    if name.casefold() in folded:  # also one that is called top
        return folded.index(name.casefold())
    if name == "top":
        return None
    alike = get_close_matches(name.casefold(), folded, 3, 0.4)
    which = ", ".join(repr(classes[folded.index(c)]) for c in alike or folded[:3])
    raise UserError(f"--class {name!r}: the checkpoint knows no such class; use one of its {len(classes)}, as {which}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
