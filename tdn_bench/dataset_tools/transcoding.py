"""Re-encode a data set's videos so that clip sampling decodes them faster: small pictures, near key frames.

Frame i of an output is frame i of its input, at its input's time, so labels and frame counts stay valid.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipelines.annotations import VIDEO_SUFFIXES
from pipelines.cpu import decode_strictly
from pipelines.errors import DataError
from pipelines.manifest import OK, VideoFile, scan_file, video_packets
from pipelines.processes import cores, map_in_processes
from tdn_bench.cli.run import run_command
from tdn_bench.errors import UserError

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import OutputContainer

LABEL_SUFFIXES = frozenset({".json", ".csv", ".txt"})
LABEL_BYTES = 64_000_000  # larger ones are no labels
STAMP = "transcode.json"  # in the folder of results: how they were encoded


@dataclass(frozen=True)
class Codec:
    """How FFmpeg writes a codec; `crf` is the lowest, the default and the highest."""

    encoder: str
    muxer: str
    suffix: str
    crf: tuple[int, int, int]
    options: dict[str, str]


CODECS = {
    # On five real clips fastdecode (no CABAC, no deblocking) halved decoding for 9 % more bytes. B-frames saved 8 %
    # of the bytes and no time; without them frames are decoded in the order shown.
    "h264": Codec(
        "libx264",
        "mp4",
        ".mp4",
        (1, 19, 51),
        {"preset": "veryfast", "tune": "fastdecode", "bf": "0", "sc_threshold": "0"},
    ),
    # No look-ahead: it adds hidden frames, which take time to decode and show nothing.
    "vp9": Codec(
        "libvpx-vp9",
        "webm",
        ".webm",
        (1, 24, 63),
        {"deadline": "good", "cpu-used": "4", "lag-in-frames": "0", "auto-alt-ref": "0", "b": "0"},
    ),
}


@dataclass(frozen=True)
class Encoding:
    """What to encode to. Raises DataError for values that make no sense."""

    short_side: int | None = 256
    """Pixels, even. Smaller videos keep their size (but odd sizes become even), and with None all do."""
    keyframe_spacing: int = 16
    """Frames from one key frame to the next: a decoder that seeks decodes fewer than these in vain."""
    codec: Literal["h264", "vp9"] = "h264"
    """H.264 is what every GPU and CPU decodes."""
    crf: int | None = None
    """Quality, lower is better; default: 19 for h264, 24 for vp9."""

    def __post_init__(self) -> None:
        if self.short_side is not None and (self.short_side < 16 or self.short_side % 2):
            raise DataError(f"short side {self.short_side}: must be even and at least 16, or None")
        if self.keyframe_spacing < 1:
            raise DataError(f"key-frame spacing {self.keyframe_spacing}: must be at least 1")
        if self.codec not in CODECS:
            raise DataError(f"codec {self.codec}: choose one of {', '.join(CODECS)}")
        lowest, _, highest = CODECS[self.codec].crf
        if self.crf is not None and not lowest <= self.crf <= highest:
            raise DataError(f"crf {self.crf}: {self.codec} takes {lowest} to {highest}")

    def options(self) -> dict[str, str]:
        """FFmpeg's options of the encoder: key frames at the spacing asked for and nowhere else."""
        codec, spacing = CODECS[self.codec], str(self.keyframe_spacing)
        crf = codec.crf[1] if self.crf is None else self.crf
        return {**codec.options, "crf": str(crf), "g": spacing, "keyint_min": spacing}

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the output: even, and never larger than the input's."""
        short = min(width, height)
        scale = Fraction(min(self.short_side or short, short), short)
        width, height = (max(2, 2 * min(round(side * scale / 2), side // 2)) for side in (width, height))
        return width, height


@dataclass(frozen=True)
class Transcoded:
    """What became of one video."""

    num_frames: int
    input_bytes: int
    output_bytes: int
    psnr_db: float
    """Luma of all frames against the input scaled to the output's size: inf if equal, nan if not measured."""
    width: int
    height: int
    encode_s: float
    """All of the work: reading, decoding, scaling, encoding, measuring, writing."""


def transcode_file(source: str, target: Path, encoding: Encoding, *, psnr: bool = True) -> Transcoded:
    """Re-encode one video; `target` appears complete or not at all.

    Raises DataError for a source that cannot be decoded to its end, UserError where `target` cannot be written.
    """
    import av

    clock = time.perf_counter()
    file = scan_file(source)
    if file.status != OK:
        raise DataError(f"{source}: {file.status}")
    codec = CODECS[encoding.codec]
    if codec.encoder not in av.codecs_available:
        raise UserError(f"codec {encoding.codec}: this FFmpeg has no encoder {codec.encoder}; choose another codec")
    ticks, time_base = _frame_ticks(source)
    options = {"fflags": "+bitexact"}  # else the muxer writes random identifiers
    if codec.muxer == "mp4":  # it counts the time before the first frame in these units
        options["movie_timescale"] = str(time_base.denominator)
    quality = _Quality(encoding.codec) if psnr else None
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(part), "w", format=codec.muxer, options=options) as output:
            rate = Fraction(file.fps or 25).limit_denominator(100_000)
            stream = output.add_stream(codec.encoder, rate=rate, options=encoding.options())
            assert isinstance(stream, av.VideoStream)
            stream.codec_context.time_base, stream.codec_context.thread_count = time_base, 1
            _encode(zip(ticks, _frames(source, file), strict=True), output, stream, encoding, quality)
            width, height = stream.width, stream.height
        _verify(source, part, [tick * time_base for tick in ticks])
        output_bytes = part.stat().st_size
        os.replace(part, target)
    except OSError as e:
        raise UserError(f"{target}: cannot be written ({e.strerror})") from e
    except av.error.FFmpegError as e:
        raise DataError(f"{source}: cannot be encoded: {e.strerror}") from e
    finally:
        if part.exists():
            part.unlink()
    psnr_db = quality.psnr_db() if quality is not None else math.nan
    seconds = time.perf_counter() - clock
    return Transcoded(file.num_frames, file.bytes, output_bytes, psnr_db, width, height, seconds)


def _encode(
    frames: Iterable[tuple[int, VideoFrame]],
    output: OutputContainer,
    stream: VideoStream,
    encoding: Encoding,
    quality: _Quality | None,
) -> None:
    """Scale, turn and encode frames, given with their ticks, into a stream of `output`."""
    from av.video.frame import PictureType
    from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

    codec, scaler = stream.codec_context, VideoReformatter()
    for tick, frame in frames:
        width, height = encoding.size(frame.width, frame.height)
        scaled = scaler.reformat(
            frame,
            width,
            height,
            "yuv420p",
            interpolation=Interpolation.BICUBIC,
            dst_colorspace=Colorspace.ITU601 if frame.format.is_rgb else None,  # None: the source's
            dst_color_range=ColorRange.MPEG,  # what readers take for granted that ignore the tag
            threads=1,
        )
        picture = _upright(scaled, frame)
        if not codec.is_open:
            codec.width, codec.height, codec.pix_fmt = picture.width, picture.height, "yuv420p"
            codec.color_range, codec.colorspace = ColorRange.MPEG, scaled.colorspace
            codec.color_primaries, codec.color_trc = scaled.color_primaries, scaled.color_trc
        picture.pts, picture.time_base = tick, codec.time_base
        picture.pict_type = PictureType.NONE  # else the source's key frames become key frames here
        if quality is not None:
            quality.sent(picture)
        _write(output, stream, picture, quality)
    _write(output, stream, None, quality)


def _write(output: OutputContainer, stream: VideoStream, picture: VideoFrame | None, quality: _Quality | None) -> None:
    """Encode a picture, or with None what the encoder still holds."""
    for packet in stream.encode(picture):
        if quality is not None:
            quality.received(packet)
        output.mux(packet)
    if picture is None and quality is not None:
        quality.received(None)


def _frame_ticks(source: str) -> tuple[list[int], Fraction]:
    """The times of the frames in the order shown, rising, from 0 or later, and the seconds of their unit.

    They are the packets' times in order: AVI knows no other than that of decoding, so frames would carry them mixed.
    """
    import av

    with av.open(source, metadata_errors="replace") as container:
        stream = container.streams.video[0]
        packets = (p for p in video_packets(container, stream) if not p.is_discard)
        stamps = [p.dts if p.pts is None else p.pts for p in packets]
        time_base = stream.time_base
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if len(known) < len(stamps) or time_base is None:
        raise DataError(f"{source}: has frames without a time")
    ticks: list[int] = []
    for stamp in known:
        ticks.append(max(stamp - min(known[0], 0), ticks[-1] + 1 if ticks else 0))
    return ticks, time_base


def _frames(source: str, file: VideoFile) -> Iterator[VideoFrame]:
    """All frames in the order shown. Raises DataError unless they are sound, of one size, and as many as scanned."""
    import av

    index, size = 0, None
    try:
        with av.open(source, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            decode_strictly(stream)  # damage that is patched here would be good pictures for ever
            for packet in container.demux(stream):
                for frame in packet.decode():
                    size = size or (frame.width, frame.height)
                    if frame.is_corrupt or packet.is_corrupt:
                        raise DataError(f"{source}: frame {index} is damaged")
                    if (frame.width, frame.height) != size:
                        raise DataError(
                            f"{source}: frame {index} is {frame.width}×{frame.height}, not {size[0]}×{size[1]}"
                        )
                    if index == file.num_frames:
                        raise DataError(f"{source}: holds more frames than the {index} that its packets announce")
                    yield frame
                    index += 1
    except (av.error.FFmpegError, OSError) as e:
        raise DataError(f"{source}: cannot be decoded after {index} frames: {e.strerror}") from e
    if index < file.num_frames:
        raise DataError(f"{source}: ends after {index} of {file.num_frames} frames")


def _upright(picture: VideoFrame, frame: VideoFrame) -> VideoFrame:
    """Turn and mirror a yuv420p picture as the display matrix of the frame that it was made from says."""
    import av

    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # x' = ax + cy, y' = bx + dy
    transposed = abs(b) > abs(a)
    x, y = (c, b) if transposed else (a, d)
    if not transposed and x > 0 and y > 0:
        return picture
    packed, height, planes = picture.to_ndarray(), picture.height, []
    for plane in (packed[:height], *packed[height:].reshape(2, height // 2, -1)):
        plane = plane.T if transposed else plane
        planes.append(plane[:: 1 if y > 0 else -1, :: 1 if x > 0 else -1])
    turned = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, planes[0].shape[1])
    return av.VideoFrame.from_ndarray(turned, format="yuv420p")


class _Quality:
    """Decodes what the encoder puts out and compares its luma with what went in, over all pictures."""

    def __init__(self, codec: str) -> None:
        import av

        decoder = av.CodecContext.create(codec, "r")
        assert isinstance(decoder, av.VideoCodecContext)
        self._decoder = decoder
        self._decoder.thread_count = 1
        self._sent: deque[np.ndarray] = deque()
        self._squares = self._pixels = 0

    def sent(self, picture: VideoFrame) -> None:
        self._sent.append(picture.to_ndarray()[: picture.height])

    def received(self, packet: Packet | None) -> None:
        if packet is not None and not self._decoder.is_open:
            self._decoder.extradata = packet.stream.codec_context.extradata
        for frame in self._decoder.decode(packet):
            luma = frame.to_ndarray()[: frame.height]
            error = luma.astype(np.int32) - self._sent.popleft()
            self._squares += int(np.square(error).sum(dtype=np.int64))
            self._pixels += luma.size

    def psnr_db(self) -> float:
        assert not self._sent, f"{len(self._sent)} pictures never came back"
        return 10 * math.log10(255**2 * self._pixels / self._squares) if self._squares else math.inf


def _verify(source: str, written: Path, times_s: list[Fraction]) -> None:
    """Raise DataError unless a file holds exactly the frames written to it, at their times."""
    import av

    with av.open(str(written)) as container:
        packets = video_packets(container, container.streams.video[0])
        found = sorted((p.pts or 0) * p.time_base for p in packets)
    if len(found) != len(times_s):
        raise DataError(f"{source}: {len(found)} of {len(times_s)} frames survive in the output")
    # WebM counts milliseconds, MP4 keeps times exactly.
    if any(abs(one - other) * 1000 > 1 for one, other in zip(found, times_s, strict=True)):
        raise DataError(f"{source}: its frames' times do not survive in the output")


@dataclass(frozen=True, kw_only=True)
class Transcode(Encoding):
    """Re-encode a data set's videos for faster decoding; frames keep their number, order and times.

    Label files (.json, .csv, .txt) are copied. A second run does only what is new.
    """

    data_root: Path
    """Folder of the data set; all videos below it."""
    out: Path
    """Folder of the result, laid out the same."""
    keep_names: bool = True
    """Keep the files' names whatever is inside (readers go by content), so that labels still find them;
    else names end with .mp4 or .webm."""
    workers: int | None = None
    """Processes; default: one a core."""
    limit: int | None = None
    """Only the first so many videos, to try."""


def _work(job: tuple[Path, Path], encoding: Encoding) -> Transcoded | str:
    """Transcode one file; a string says why it could not be done."""
    try:
        return transcode_file(str(job[0]), job[1], encoding)
    except DataError as e:
        return str(e)


def _files(root: Path) -> list[Path]:
    """All files below a folder, and below those that links in it lead to, sorted. Each folder counts once, by its own
    name if it has one below, and a link to a folder above is no way down. Raises UserError where one cannot be listed:
    no video is lost in silence."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable") from error

    def is_detour(path: Path) -> bool:
        target = path.resolve()
        return path.is_symlink() and (target.is_relative_to(home) or home.is_relative_to(target))

    home, found, seen = root.resolve(), list[Path](), set[Path]()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        if (real := Path(folder).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_detour(Path(folder, name)))
        found += [Path(folder, name) for name in names]
    return sorted(found)


def _run(jobs: list[tuple[Path, Path]], encoding: Encoding, workers: int) -> Iterator[Transcoded | str]:
    from rich.progress import track

    work, label, quiet = partial(_work, encoding=encoding), "Transcoding videos", not sys.stderr.isatty()
    if min(workers, len(jobs)) <= 1:
        yield from track(map(work, jobs), label, len(jobs), disable=quiet)
        return
    done = 0
    try:
        for result in track(map_in_processes(work, jobs, min(workers, len(jobs))), label, len(jobs), disable=quiet):
            yield result
            done += 1
    except BrokenProcessPool as e:
        raise UserError(
            f"{jobs[done][0]}: an encoding process died at this video or one of the {workers} after it (FFmpeg "
            "crashed, or memory ran out); what was encoded is kept: run again, with fewer --workers"
        ) from e


def _claim(config: Transcode, encoding: Encoding) -> None:
    """Mark --out as holding this encoding. Raises UserError if it holds anything else."""
    stamp: dict[str, Any] = asdict(encoding) | {"options": encoding.options(), "keep_names": config.keep_names}
    path = config.out / STAMP
    try:
        found = json.loads(path.read_bytes()) if path.exists() else None
    except ValueError:
        found = "nothing readable"
    if found is None and config.out.exists() and any(config.out.iterdir()):
        raise UserError(f"--out {config.out}: holds other files; choose an empty or a new folder")
    if found is not None and found != stamp:
        raise UserError(f"--out {config.out}: {STAMP} tells of other settings; choose another folder, or remove it")
    config.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")


def _is_done(source: Path, target: Path) -> bool:
    """Whether a result exists (then it is complete) and is no older than its source."""
    try:
        return target.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except OSError:
        return False


def _copy_labels(root: Path, out: Path, files: Iterable[Path]) -> int:
    """Copy label files that are new or changed; returns how many label files there are."""
    labels = [f for f in files if f.suffix.lower() in LABEL_SUFFIXES and f.is_file() and f.stat().st_size < LABEL_BYTES]
    labels = [f for f in labels if f != root / STAMP]
    for file in labels:
        target = out / file.relative_to(root)
        if not _is_done(file, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return len(labels)


def main(argv: Sequence[str] | None = None) -> None:
    """Transcode a data set; raises UserError at the end if any video failed."""
    import tyro

    config = tyro.cli(Transcode, args=argv, prog="tdn-bench transcode")
    encoding = Encoding(**{f.name: getattr(config, f.name) for f in fields(Encoding)})
    for name, value in (("workers", config.workers), ("limit", config.limit)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    root, out = config.data_root, config.out
    if not root.is_dir():
        raise UserError(f"--data-root {root}: no such folder")
    if root.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"--out {out}: must lie outside of --data-root {root}, and not around it")

    files = _files(root)
    videos = [f for f in files if f.suffix.lower() in VIDEO_SUFFIXES][: config.limit]
    if not videos:
        raise UserError(f"--data-root {root}: holds no videos ({' '.join(sorted(VIDEO_SUFFIXES))})")
    suffix = CODECS[encoding.codec].suffix
    targets = [out / (f if config.keep_names else f.with_suffix(suffix)).relative_to(root) for f in videos]
    if len(set(targets)) < len(targets):
        raise UserError("--no-keep-names: several videos differ by suffix alone and would become one; use --keep-names")
    try:
        _claim(config, encoding)
        labels = _copy_labels(root, out, files)
    except OSError as e:
        raise UserError(f"--out {out}: cannot be written ({e.strerror})") from e

    jobs = [job for job in zip(videos, targets, strict=True) if not _is_done(*job)]
    print(f"{len(videos)} videos, {len(videos) - len(jobs)} of them done before; {labels} label files")
    clock = time.perf_counter()
    done: dict[Path, Transcoded] = {}
    failures = []
    for (source, _), result in zip(jobs, _run(jobs, encoding, config.workers or cores()), strict=True):
        if isinstance(result, Transcoded):
            done[source] = result
        else:
            failures.append(result)
    if done:
        _summarise(done, time.perf_counter() - clock)
    for failure in failures:
        print(f"  failed: {failure}")
    if failures:
        raise UserError(f"{len(failures)} of {len(videos)} videos could not be transcoded; they are listed above")


def _summarise(done: dict[Path, Transcoded], wall_s: float) -> None:
    before, after = sum(t.input_bytes for t in done.values()), sum(t.output_bytes for t in done.values())
    frames, encode_s = sum(t.num_frames for t in done.values()), sum(t.encode_s for t in done.values())
    worst = min(done, key=lambda source: done[source].psnr_db)
    mean_db = sum(t.psnr_db for t in done.values()) / len(done)
    print(f"{len(done)} videos of {frames} frames in {wall_s:.1f} s ({encode_s:.1f} s of encoding in all processes)")
    print(f"  {before / 1e9:.3f} GB → {after / 1e9:.3f} GB ({after / before:.0%})")
    print(f"  luma PSNR: mean {mean_db:.1f} dB, lowest {done[worst].psnr_db:.1f} dB ({worst})")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
