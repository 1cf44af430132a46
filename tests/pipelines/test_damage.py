"""The damaged files are the same for a seed, of every kind, and damaged."""

import hashlib
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from support.damage import FILE_KINDS, FOLDER_KINDS, Damaged, damage, make_damaged
from support.videos import numbered_frames, write_video

KINDS = 3 * len(FILE_KINDS) + len(FOLDER_KINDS)  # of three containers and the folders


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sound")
    frames = numbered_frames(30, 64, 48)
    clips = [("a.webm", "libvpx-vp9"), ("b.webm", "libvpx-vp9"), ("a.mp4", "libx264"), ("a.avi", "mpeg4")]
    videos = [write_video(root / name, frames, encoder) for name, encoder in clips]
    (root / "c").mkdir()
    for i, frame in enumerate(frames[:9]):
        (root / "c" / f"{i + 1:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(frame))
    return [root / "c", *videos]


def content(path: Path) -> dict[str, str]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {f.name if path.is_dir() else "": hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_same_for_a_seed_whatever_the_order_of_the_sources(sources: list[Path], tmp_path: Path) -> None:
    first = make_damaged(sources, tmp_path / "1", 2 * KINDS, seed=7)
    again = make_damaged(sources[::-1], tmp_path / "2", 2 * KINDS, seed=7)
    other = make_damaged(sources, tmp_path / "3", 2 * KINDS, seed=8)

    def facts(damaged: list[Damaged]) -> list[tuple]:
        return [(d.path.name, d.source, d.kind, d.detail, content(d.path)) for d in damaged]

    assert facts(first) == facts(again)
    assert sum(content(a.path) != content(b.path) for a, b in zip(first, other, strict=True)) > KINDS


def test_every_kind_of_every_container_comes_equally_often(sources: list[Path], tmp_path: Path) -> None:
    count = 2 * KINDS + 5
    damaged = make_damaged(sources, tmp_path, count, seed=0)
    assert len(damaged) == count == len({d.path for d in damaged}) == len(list(tmp_path.iterdir()))
    times = Counter((d.source.suffix, d.kind) for d in damaged)
    assert len(times) == KINDS
    assert set(times.values()) == {2, 3}
    assert {d.source for d in damaged} == set(sources)


def test_all_are_damaged_and_the_sources_are_not(sources: list[Path], tmp_path: Path) -> None:
    before = [content(s) for s in sources]
    for d in make_damaged(sources, tmp_path, 3 * KINDS, seed=1):
        assert d.detail
        assert d.path.is_dir() == d.source.is_dir()
        if d.kind == "wrong_suffix":
            assert content(d.path) == content(d.source)
            assert d.path.suffix in {".avi", ".mp4", ".webm"} - {d.source.suffix}
        else:
            assert content(d.path) != content(d.source)
            assert d.path.suffix == d.source.suffix
    assert [content(s) for s in sources] == before


def bytes_of(sources: list[Path], folder: Path, name: str, kind: str, seed: int) -> tuple[bytes, bytes]:
    """A sound file's bytes and those of a damaged copy."""
    source = next(s for s in sources if s.name == name)
    return source.read_bytes(), damage(source, folder, seed, kind).path.read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_damages_do_what_their_names_say(sources: list[Path], tmp_path: Path, seed: int) -> None:
    sound, cut = bytes_of(sources, tmp_path, "a.webm", "truncated", seed)
    assert sound.startswith(cut)
    assert len(cut) < len(sound)
    _, flipped = bytes_of(sources, tmp_path, "a.webm", "bit_errors", seed)
    wrong = np.unpackbits(np.frombuffer(sound, np.uint8) ^ np.frombuffer(flipped, np.uint8)).sum()
    assert 1 <= wrong < 2e-3 * 8 * len(sound) + 20
    _, tail = bytes_of(sources, tmp_path, "a.webm", "zero_tail", seed)
    kept = len(tail.rstrip(b"\0"))
    assert len(tail) == len(sound)
    assert tail[:kept] == sound[:kept]
    _, longer = bytes_of(sources, tmp_path, "a.webm", "prepended", seed)
    assert longer.endswith(sound)


@pytest.mark.parametrize(("name", "most"), [("a.webm", 8), ("a.mp4", 4), ("a.avi", 4)])
def test_a_lying_count_is_one_field(sources: list[Path], tmp_path: Path, name: str, most: int) -> None:
    for seed in range(12):
        sound, lying = (np.frombuffer(b, np.uint8) for b in bytes_of(sources, tmp_path, name, "lying_count", seed))
        wrong = np.flatnonzero(sound != lying)
        assert len(sound) == len(lying)
        assert wrong[-1] - wrong[0] < most


@pytest.mark.parametrize("name", ["a.webm", "a.mp4", "a.avi"])
def test_missing_packets_leave_a_file_that_opens(sources: list[Path], tmp_path: Path, name: str) -> None:
    source = next(s for s in sources if s.name == name)
    keys = set()
    for seed in range(12):
        with av.open(str(damage(source, tmp_path, seed, "missing_packets").path)) as container:
            packets = [p for p in container.demux(container.streams.video[0]) if p.size]
        assert 20 <= len(packets) < 30
        keys.add(sum(p.is_keyframe for p in packets))
    assert len(keys) > 1  # some lack a key frame


def test_folders(sources: list[Path], tmp_path: Path) -> None:
    for seed in range(5):
        one = {kind: damage(sources[0], tmp_path, seed, kind).path for kind in FOLDER_KINDS}
        counts = {kind: len(list(path.iterdir())) for kind, path in one.items()}
        assert counts == dict.fromkeys(FOLDER_KINDS, 9) | {"frame_missing": 8, "folder_empty": 0}
        names = {f.name for f in one["frame_missing"].iterdir()}
        assert {"00001.jpg", "00009.jpg"} <= names
        sizes = {simplejpeg.decode_jpeg_header(f.read_bytes())[:2] for f in one["frame_other_size"].iterdir()}
        assert len(sizes) == 2
        assert sum(f.stat().st_size == 0 for f in one["frame_empty"].iterdir()) == 1
        assert sum(not f.read_bytes().startswith(b"\xff\xd8") for f in one["frame_no_jpeg"].iterdir()) == 1
