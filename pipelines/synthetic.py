"""A small motion data set in the layout of Something-Something V2, rendered and encoded on the spot.

Eight classes in four pairs, each class the other's clips played backwards. Whatever a single frame shows
(shape, colours, textures, position, size, angle) has the same distribution in every class, so one frame from
anywhere in a clip says nothing, and a set of frames without their order never tells the two of a pair apart.
The world is a torus the size of the frame: an object that leaves on one side enters on the other, which keeps
its position uniform whatever its motion.

A mirrored clip belongs to another class (left and right, clockwise and counterclockwise): whoever flips clips
must flip labels too, as `pipelines.annotations.flip_labels` does.
"""

import colorsys
import io
import json
import math
import signal
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from pipelines.annotations import VIDEO_FOLDER
from pipelines.errors import DataError, printable
from pipelines.files import clear_debris, read_regular, write_whole
from pipelines.label_files import class_name
from pipelines.processes import cores, map_in_processes, max_workers
from pipelines.progress import tracked

TEMPLATES = (
    "Moving [something] away from the camera",
    "Moving [something] closer to the camera",
    "Moving [something] down",
    "Moving [something] from left to right",
    "Moving [something] from right to left",
    "Moving [something] up",
    "Turning [something] clockwise",
    "Turning [something] counterclockwise",
)
CLASSES: tuple[str, ...] = tuple(map(class_name, TEMPLATES))
HEIGHT, WIDTH, FPS = 128, 160, 12  # GPU decoders take VP9 from 128 × 128 on
VERSION = 1  # raise it whenever the same seed gives other clips
VALIDATION_START = 100_000  # index (and id) of the first validation clip: training may grow up to here

# What a class does to the (x, y, log radius, angle) of the object; y points down, so clockwise is positive.
_GROW, _RIGHT, _DOWN, _TURN = np.eye(4)[[2, 0, 1, 3]]
_DIRECTIONS = (-_GROW, _GROW, _DOWN, _RIGHT, -_RIGHT, -_DOWN, _TURN, -_TURN)
_RADIUS = (0.17 * HEIGHT, 0.48 * HEIGHT)  # below one half, so that an object never meets itself on the torus
_SPRITE = 192  # texels a side; two to five a pixel, so that the nearest one is good enough
_COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_HUES = (0, 30, 56, 120, 182, 232, 272, 325)  # degrees
_BACKGROUNDS = ("noise", "gradient", "stripes")


@dataclass(frozen=True)
class Scene:
    """Everything drawn for one clip. Pixels and radians; x, y and angle are those half-way through."""

    label: int
    frames: int
    shape: str
    colour: str
    rgb: tuple[float, ...]  # of the object, 0..1
    background: str
    background_rgb: tuple[float, ...]
    texture_seed: int
    x: float
    y: float
    angle: float
    radius: float  # geometric mean over the clip, had it a scaling class
    travel: float  # distance from the first frame to the last, had it a moving class
    zoom: float  # last radius / first radius, had it the approaching class
    turn: float  # angle from the first frame to the last, had it a turning class
    held: int  # the frame of the scaling clip whose radius the other classes keep
    camera_sway: tuple[float, ...]  # amplitude in x and y
    camera_cycles: tuple[float, ...]  # per clip
    camera_phase: tuple[float, ...]


class Pose(NamedTuple):
    """Float arrays, one value a frame: object centre on screen (wrapped), radius, angle, camera shift."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    camera_x: np.ndarray
    camera_y: np.ndarray


def draw_scene(seed: int, index: int) -> Scene:
    """Draw clip `index` of data set `seed`; every aligned block of eight indices has each class once."""
    block, place = divmod(index, len(CLASSES))
    label = int(np.random.default_rng((seed, 0, block)).permutation(len(CLASSES))[place])
    # The label is not used below: that is what keeps every other property independent of it.
    rng = np.random.default_rng((seed, 1, index))
    frames = int(rng.integers(36, 61))
    colour = int(rng.integers(len(_COLOURS)))
    hue = (_HUES[colour] + rng.uniform(-6, 6)) / 360 % 1
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.95), rng.uniform(0.75, 1.0))
    # At least 0.3 from the object's brightness round a circle, so no less in a straight line.
    brightness = (np.dot(rgb, (0.30, 0.59, 0.11)) + rng.uniform(0.3, 0.7)) % 1.0
    background_rgb = np.clip(0.1 + 0.8 * brightness + rng.uniform(-0.12, 0.12, 3), 0, 1)
    zoom = rng.uniform(2.1, 2.7)
    low, high = _RADIUS[0] * math.sqrt(zoom), _RADIUS[1] / math.sqrt(zoom)
    return Scene(
        label=label,
        frames=frames,
        shape=str(rng.choice(list(_SHAPES))),
        colour=_COLOURS[colour],
        rgb=rgb,
        background=str(rng.choice(_BACKGROUNDS)),
        background_rgb=tuple(background_rgb.tolist()),
        texture_seed=int(rng.integers(2**31)),
        x=rng.uniform(0, WIDTH),
        y=rng.uniform(0, HEIGHT),
        angle=rng.uniform(0, 2 * math.pi),
        radius=math.exp(rng.uniform(math.log(low), math.log(high))),
        travel=rng.uniform(0.6, 1.1) * HEIGHT,
        zoom=zoom,
        turn=math.radians(rng.uniform(150, 330)),
        held=int(rng.integers(frames)),
        camera_sway=tuple(rng.uniform(0.0, 2.5, 2).tolist()),
        camera_cycles=tuple(rng.uniform(0.4, 1.2, 2).tolist()),
        camera_phase=tuple(rng.uniform(0, 2 * math.pi, 2).tolist()),
    )


def pose(scene: Scene, frame: np.ndarray) -> Pose:
    """Where the object and the camera are at zero-based `frame` (any shape, within 0..frames-1).

    Played backwards this is the pose of the partner class with camera_phase p replaced by pi - p.
    """
    last = scene.frames - 1
    time = (2 * frame - last) / (2 * last)  # -1/2 .. 1/2, exactly antisymmetric under reversal
    held = (2 * scene.held - last) / (2 * last)
    dx, dy, grow, spin = _DIRECTIONS[scene.label]
    waves = zip(scene.camera_sway, scene.camera_cycles, scene.camera_phase, strict=True)
    camera_x, camera_y = (sway * np.sin(2 * np.pi * cycles * time + phase) for sway, cycles, phase in waves)
    return Pose(
        x=(scene.x + dx * scene.travel * time + camera_x) % WIDTH,
        y=(scene.y + dy * scene.travel * time + camera_y) % HEIGHT,
        radius=scene.radius * scene.zoom ** (grow * time if grow else held + 0 * time),
        angle=(scene.angle + spin * scene.turn * time) % (2 * np.pi),
        camera_x=camera_x,
        camera_y=camera_y,
    )


Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _convex(*corners: tuple[float, float]) -> Distance:
    """Signed distance (exact next to an edge) to a convex polygon, corners clockwise on screen."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        farthest = np.full(np.broadcast(x, y).shape, -np.inf)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            edge = ((y1 - y0) * (x - x0) - (x1 - x0) * (y - y0)) / math.hypot(x1 - x0, y1 - y0)
            farthest = np.maximum(farthest, edge)
        return farthest

    return distance


def _box(left: float, top: float, right: float, bottom: float) -> Distance:
    return _convex((left, top), (right, top), (right, bottom), (left, bottom))


def _union(one: Distance, other: Distance) -> Distance:
    return lambda x, y: np.minimum(one(x, y), other(x, y))


# Signed distances in the unit disc. None looks the same after a turn; the disc owes that to its two tones.
_SHAPES: dict[str, Distance] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.85,
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.6 - np.hypot(x - 0.6, y)),
    "drop": _union(lambda x, y: np.hypot(x + 0.3, y) - 0.65, _convex((0.0, -0.58), (0.98, 0.0), (0.0, 0.58))),
    "wedge": _convex((-0.85, -0.5), (0.98, 0.1), (-0.6, 0.78)),
    "arrow": _union(_convex((0.0, -0.85), (0.98, 0.0), (0.0, 0.85)), _box(-0.9, -0.35, 0.1, 0.35)),
    "boot": _union(_box(-0.6, -0.75, 0.0, 0.7), _box(-0.6, 0.1, 0.7, 0.7)),
}


@cache
def _stencil(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Opacity and two-tone shading of a shape, float32 (_SPRITE, _SPRITE) over [-1, 1] x [-1, 1]."""
    axis = np.linspace(-1, 1, _SPRITE)
    x, y = np.meshgrid(axis, axis)
    opacity = np.clip(0.5 - _SHAPES[shape](x, y) / 0.04, 0, 1)
    opacity[[0, -1], :] = opacity[:, [0, -1]] = 0  # look-ups beyond the sprite are clipped to its border
    tone = 0.84 + 0.26 * np.clip(x / 0.04, -1, 1)
    return opacity.astype(np.float32), tone.astype(np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, waves: int) -> np.ndarray:
    """Smooth noise of unit variance, periodic in both directions, with up to `waves` waves a side."""
    spectrum = np.zeros((height, width // 2 + 1), np.complex64)
    for rows in (slice(1, waves + 1), slice(-waves, None)):
        spectrum[rows, 1 : waves + 1] = rng.normal(size=(waves, waves)) + 1j * rng.normal(size=(waves, waves))
    field: np.ndarray = np.fft.irfft2(spectrum, s=(height, width))
    field /= field.std()
    return field


def _background(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Float32 (2H+1, 2W+1, 3), 0..255: the periodic background twice over, so that any shift is a slice."""
    if scene.background == "noise":
        pattern = 0.6 * _noise(rng, HEIGHT, WIDTH, 5)
    else:
        most = 1 if scene.background == "gradient" else 6
        # Whole waves a frame, hence periodic.
        rows, columns = rng.integers(-most, most + 1), rng.integers(1, most + 1)
        y, x = np.ogrid[:HEIGHT, :WIDTH]
        pattern = np.sin(2 * np.pi * (rows * y / HEIGHT + columns * x / WIDTH + rng.uniform()))
    image = 255 * np.clip(scene.background_rgb + rng.uniform(0.05, 0.18, 3) * pattern[:, :, None], 0, 1)
    return np.pad(image.astype(np.float32), ((0, HEIGHT + 1), (0, WIDTH + 1), (0, 0)), mode="wrap")


def _texels(x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """int32 (2r + 1, 2r + 1), r = ⌈radius⌉: the sprite's texel, as a flat index, of each pixel around the object."""
    reach = math.ceil(radius)
    offset = np.arange(-reach, reach + 1, dtype=np.float32)
    scale = (_SPRITE - 1) / 2 / radius
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    dx, dy = offset - np.float32(x % 1), (offset - np.float32(y % 1))[:, None]
    middle = np.float32(_SPRITE / 2)  # half a texel more than the centre: truncation then rounds
    u = np.clip(dx * np.float32(cos) + (dy * np.float32(sin) + middle), 0, _SPRITE - 1).astype(np.int32)
    v = np.clip(dy * np.float32(cos) - (dx * np.float32(sin) - middle), 0, _SPRITE - 1).astype(np.int32)
    return v * _SPRITE + u


def render(scene: Scene) -> np.ndarray:
    """Render a clip: uint8 (scene.frames, HEIGHT, WIDTH, 3), RGB."""
    rng = np.random.default_rng(scene.texture_seed)
    background = _background(scene, rng)
    opacity, tone = _stencil(scene.shape)
    texture = np.clip(tone + 0.1 * _noise(rng, _SPRITE, _SPRITE, 4), 0, 1.2).astype(np.float32)
    paint = np.minimum(np.array(scene.rgb, np.float32)[:, None, None] * texture, 1) * 255 * opacity
    sprite = np.concatenate([paint, 1 - opacity[None]]).reshape(4, -1)  # premultiplied colour, transparency

    clip = np.empty((scene.frames, HEIGHT, WIDTH, 3), np.uint8)
    for out, (x, y, radius, angle, camera_x, camera_y) in zip(
        clip, np.stack(pose(scene, np.arange(scene.frames)), axis=1).tolist(), strict=True
    ):
        # Draw with the object in the middle, where nothing wraps, and roll the finished frame into place.
        left, top = math.floor(x) - WIDTH // 2, math.floor(y) - HEIGHT // 2
        column, across = divmod((left - camera_x) % WIDTH, 1)
        row, down = divmod((top - camera_y) % HEIGHT, 1)
        tile = background[int(row) : int(row) + HEIGHT + 1, int(column) : int(column) + WIDTH + 1]
        rows = tile[1:] - tile[:-1]
        rows *= np.float32(down)
        rows += tile[:-1]
        frame = rows[:, 1:] - rows[:, :-1]
        frame *= np.float32(across)
        frame += rows[:, :-1]

        places = _texels(x, y, radius, angle)
        texels = sprite.take(places, axis=1)
        reach = len(places) // 2
        window = frame[HEIGHT // 2 - reach :, WIDTH // 2 - reach :][: len(places), : len(places)]
        for channel in range(3):
            window[..., channel] *= texels[3]
            window[..., channel] += texels[channel]
        out[:] = np.roll(frame.astype(np.uint8), (top, left), axis=(0, 1))
    return clip


def object_masks(scene: Scene, frames: np.ndarray) -> np.ndarray:
    """Where `render` draws the object, more than half opaque, in zero-based `frames` (F,): bool (F, HEIGHT, WIDTH)."""
    opaque = _stencil(scene.shape)[0].ravel() > 0.5
    masks = np.zeros((len(frames), HEIGHT, WIDTH), bool)
    for mask, (x, y, radius, angle, *_) in zip(masks, np.stack(pose(scene, frames), axis=1).tolist(), strict=True):
        window = opaque[_texels(x, y, radius, angle)]
        at = np.arange(len(window)) - len(window) // 2
        mask[np.ix_((math.floor(y) + at) % HEIGHT, (math.floor(x) + at) % WIDTH)] = window
    return masks


def encode(clip: np.ndarray) -> bytes:
    """Encode uint8 (N, H, W, 3) RGB frames as VP9 in WebM; the same frames always give the same bytes."""
    buffer = io.BytesIO()
    # Without bitexact the muxer writes random track identifiers.
    with av.open(buffer, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "32", "b": "0"}
        stream = container.add_stream("libvpx-vp9", rate=FPS, options=options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half written."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def _write_clip(folder: Path, seed: int, index: int) -> None:
    _replace(folder / f"{index}.webm", encode(render(draw_scene(seed, index))))


def _annotation(seed: int, index: int) -> str:
    scene = draw_scene(seed, index)
    template, thing = TEMPLATES[scene.label], f"{scene.colour} {scene.shape}"
    label = (template[0].lower() + template[1:]).replace("[something]", thing)
    return json.dumps({"id": str(index), "label": label, "template": template, "placeholders": [thing]})


def _claim(root: Path, stamp: dict[str, int]) -> None:
    """Mark `root` as holding the clips of `stamp`, or raise DataError if it holds anything else."""
    path = root / "labels" / "synthetic.json"
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = None
        if not isinstance(found, dict) or any(found.get(key) != stamp[key] for key in ("version", "seed")):
            raise DataError(
                f"{root} holds another synthetic data set ({found}, asked for: {stamp}): "
                "remove the folder or choose another"
            )
    elif root.exists() and any(entry.is_file() for entry in root.rglob("*")):
        raise DataError(f"{root} holds something other than synthetic clips: choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(stamp).encode())


def files_of(root: Path) -> list[Path]:
    """All files that `make_dataset` wrote below `root`, the mark that it is its own last; none where that is missing.
    What else lies there is not named, nor what a link leads to."""
    mark = root / "labels" / "synthetic.json"
    folders = (root, root / "labels", root / VIDEO_FOLDER)
    if any(folder.is_symlink() for folder in folders) or mark.is_symlink() or not mark.is_file():
        return []
    try:
        stamp = json.loads(read_regular(mark, 10_000))
    except (OSError, ValueError):
        return []
    if not isinstance(stamp, dict) or not {"version", "seed"} <= stamp.keys():
        return []
    clips = [path for path in (root / VIDEO_FOLDER).glob("*.webm") if path.stem.isdecimal()]
    labels = [root / "labels" / f"{name}.json" for name in ("train", "validation", "labels", "synthetic")]
    return [path for path in (*sorted(clips), *labels) if path.is_file() and not path.is_symlink()]


def make_dataset(
    root: Path,
    *,
    train: int = 640,
    validation: int = 160,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Render and encode a data set under `root`, keeping the clips that an earlier run has finished.

    Clips depend on the seed and their id alone, so more of them can be asked for later and none changes.

    Args:
        root: Folder to make; anything in it must come from an earlier run with the same seed.
        train: Training clips, 8 to 100 000.
        validation: Validation clips, at least 8.
        seed: Not negative; another seed is another data set.
        workers: Processes; by default one for each CPU this process may use.
        progress: Show a progress bar.

    Returns:
        `root`.

    Raises:
        DataError: The numbers make no sense, or `root` holds something else or cannot be written.
    """
    workers = cores() if workers is None else workers
    if min(train, validation) < len(CLASSES) or train > VALIDATION_START:
        raise DataError(
            f"train must be 8 to {VALIDATION_START} and validation at least 8, got {train} and {validation}"
        )
    if seed < 0 or not 1 <= workers <= max_workers():
        raise DataError(f"seed must be at least 0 and workers 1 to {max_workers()}, got {seed} and {workers}")
    folder = root / VIDEO_FOLDER
    for place in (root / "labels", folder):
        clear_debris(place)
    try:
        _claim(root, {"version": VERSION, "seed": seed, "train": train, "validation": validation})
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{root} cannot be written: {error.strerror}") from error
    splits = {"train": range(train), "validation": range(VALIDATION_START, VALIDATION_START + validation)}
    missing = [i for indices in splits.values() for i in indices if not (folder / f"{i}.webm").exists()]
    write = partial(_write_clip, folder, seed)
    done = map_in_processes(write, missing, workers, chunksize=4)
    try:
        for _ in tracked(done, "Rendering", len(missing), shown=progress):
            pass
    except BrokenProcessPool as error:
        raise DataError(
            f"{root}: a rendering process died (memory ran out?); finished clips are kept: rerun with fewer --workers"
        ) from error
    for name, indices in splits.items():
        lines = ",\n".join(_annotation(seed, index) for index in indices)
        _replace(root / "labels" / f"{name}.json", f"[\n{lines}\n]\n".encode())
    names = {name: str(label) for label, name in enumerate(CLASSES)}
    _replace(root / "labels" / "labels.json", (json.dumps(names, indent=0) + "\n").encode())
    return root


def main() -> None:
    """Command line of make_dataset; errors are one line on stderr and exit status 2."""
    import tyro  # here, so that the worker processes do without it

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        tyro.cli(make_dataset, config=(tyro.conf.PositionalRequiredArgs,))
    except DataError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
