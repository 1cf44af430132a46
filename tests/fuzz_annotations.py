"""Hostile annotation files through every reader: `make fuzz`; `test_fuzz_annotations.py` runs a slice.

A seed damages one label file of a small sound set, in its bytes, its lines, its JSON values, or as a file (a pipe, a
device, a folder, a link). Each must end in one line that says what is wrong, or in annotations that hold together.
"""

from __future__ import annotations

import faulthandler
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from pipelines.annotations import Annotations, read_dataset, read_lists
from pipelines.errors import DataError
from tdn_bench.cli import run_command

HANG_S = 60
MISSING = "must be laid out as"  # the one message of several lines: the layout, where label files are not found
TEMPLATES = ["Moving [something] up", "Throwing [something]"]
_K400 = "label,youtube_id,time_start,time_end,split\n"
SETS: dict[str, dict[str, str]] = {
    "sthv1": {
        "labels.csv": "Closing something\nTurning something\n",
        "train.csv": "5;Turning something\n6;Closing something\n",
        "validation.csv": "9;Closing something\n",
        "test.csv": "11\n",
    },
    "sthv2": {
        "labels/labels.json": json.dumps({"Moving something up": "0", "Throwing something": "1"}),
        "labels/train.json": json.dumps([{"id": str(i), "template": t} for i, t in enumerate(TEMPLATES)]),
        "labels/validation.json": json.dumps([{"id": 31, "template": TEMPLATES[0]}]),
        "labels/test.json": json.dumps([{"id": "7"}]),
        "labels/test-answers.csv": "7;Throwing something\n",
    },
    "kinetics400": {
        "train.csv": f"{_K400}a,AAAAAAAAAAA,0,10,train\nb,BBBBBBBBBBB,7,17,train\n",
        "val.csv": f'{_K400}"b",___________,191,201,val\n',
    },
    "ucf101": {
        "classInd.txt": "1 A\r\n2 B\r\n",
        "trainlist01.txt": "A/v_A_g08.avi 1\r\nB/v_B_g08.avi 2\r\n",
        "testlist01.txt": "B/v_B_g01.avi\r\n",
    },
    "hmdb51": {"a_test_split1.txt": "x.avi 1 \nz.avi 0 \n", "b_test_split1.txt": "y.avi 2 \nw.avi 1 \n"},
    "lists": {
        "train.txt": "videos/a.mp4 30 0\nvideos/b.mp4 31 1\n",
        "val.txt": "videos/c d.mp4 1\nvideos/e.mp4 0\n",
        "classes.txt": "up\ndown\n",
    },
}
FOLDERS = {"sthv1": "20bn-something-something-v1", "sthv2": "20bn-something-something-v2"}
WORDS = (
    *("99999999999999999999", "9" * 5000, "-1", "1e999", "NaN", "\u00b2", "\u0663", "0x1", "", " ", "\t", ",", ";"),
    *("../../../etc/passwd", "/etc/passwd", "/dev/zero", "out/secret.mp4", "..", ".", "~", "$HOME", "a" * 5000),
    *("\0", "\x1b[31m", "\x85", "\u2028", "\u202e", "\ufeff", "\\ud800", "\\u0000", "é", "e\u0301", "\r", "\n", '"'),
)
VALUES = (
    *('"\\ud800"', '"\\u0000"', '"../../x"', '"/etc/passwd"', '"\\u001b[2J"', '""', "null", "true", "1e999", "NaN"),
    *("-1", "1.5", "9" * 5000, "9" * 30, "[" * 100_000, "[]", "{}", '{"a": 1, "a": 2}', "[[1]]", f'"{"x" * 5000}"'),
)


def in_bytes(path: Path, rng: Generator) -> None:
    data = path.read_bytes()
    at = int(rng.integers(len(data)))
    new = (rng.bytes(3), b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf", b"\r", b"")[rng.integers(8)]
    end = (at, at + 1, len(data))[rng.integers(3)]
    data = data[:at] + new + data[end:]
    path.write_bytes((data, data.decode("latin-1").encode("utf-16"))[rng.random() < 0.1])


def in_words(path: Path, rng: Generator) -> None:
    """A word of a line replaced, joined or added; or lines doubled, swapped, blank."""
    lines = path.read_text().splitlines()
    at = int(rng.integers(len(lines)))
    words = lines[at].replace(",", " , ").replace(";", " ; ").split(" ")
    place, word = int(rng.integers(len(words))), WORDS[rng.integers(len(WORDS))]
    words[place] = (word, words[place] + word, f"{words[place]} {word}")[rng.integers(3)]
    lines[at] = " ".join(words).replace(" , ", ",").replace(" ; ", ";")
    if rng.random() < 0.2:
        lines.insert(int(rng.integers(len(lines))), ("", lines[0], lines[-1])[rng.integers(3)])
    path.write_text(("\n", "\r\n", "\r")[rng.integers(3)].join(lines), newline="")


def in_values(path: Path, rng: Generator) -> None:
    """A JSON value, key or the whole replaced; of a file that is no JSON, a whole line."""
    text, new = path.read_text(), VALUES[rng.integers(len(VALUES))]
    parts = json.dumps(json.loads(text), indent=0).splitlines() if path.suffix == ".json" else text.splitlines()
    at = int(rng.integers(len(parts)))
    key, colon, value = parts[at].partition(": ")
    comma = "," * value.endswith(",")
    parts[at] = (f"{key}: {new}{comma}" if colon else new, f"{new}{colon}{value}", new)[rng.integers(3)]
    path.write_text("\n".join(parts) if rng.random() < 0.95 else new)


def as_file(path: Path, rng: Generator) -> None:
    path.unlink()
    kind = rng.integers(7)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.write_bytes(b"")
    elif kind == 3:
        with path.open("wb") as file:
            file.truncate(1 << 40)  # no blocks of it are on the disk
    else:
        path.symlink_to(("/dev/zero", path, "/nowhere")[kind - 4])


DAMAGES: tuple[Callable[[Path, Generator], None], ...] = (in_bytes, in_words, in_values, as_file)


def read(name: str, root: Path) -> Annotations:
    if name == "lists":
        return read_lists(root / "train.txt", root / "val.txt", classes=root / "classes.txt")
    return read_dataset(name, root)


def check(annotations: Annotations, root: Path) -> None:
    """What holds of all annotations, whatever was done to their files. Raises AssertionError."""
    classes = annotations.classes
    assert len(set(classes)) == len(classes) > 0
    assert all(name.strip() and "\0" not in name and name.encode() for name in classes)
    home = str(root.resolve())
    for sample in annotations.samples:
        assert (-1 if sample.split == "test" else 0) <= sample.label < len(classes)
        assert "\0" not in sample.path
        assert os.path.realpath(sample.path.encode()).decode().startswith(f"{home}/")


def fuzz(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Read `count` hostile sets, in turns of reader and damage. Raises AssertionError for any end but the right one."""
    counts: Counter[str] = Counter()
    turns = [(name, damage) for damage in DAMAGES for name in SETS]
    for i in range(count):
        rng, (name, damage) = np.random.default_rng((seed, i)), turns[i % len(turns)]
        root = folder / f"{i}"
        for file, text in SETS[name].items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text, newline="")
        (root / FOLDERS.get(name, "videos")).mkdir()
        (root / "out").symlink_to("/etc")
        victim = sorted(SETS[name])[rng.integers(len(SETS[name]))]
        damage(root / victim, rng)
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        reason = None
        try:
            check(read(name, root), root)
        except DataError as e:
            reason = str(e)
        if reason is None:
            counts["read"] += 1
        else:
            assert reason.strip(), f"{root}: refused without a reason"
            assert "\n" not in reason or MISSING in reason, f"{root}: {reason!r}"
            assert len(reason) < 2000, f"{root}: a message of {len(reason)} characters"
            counts["refused"] += 1
            counts["refused for leading outside"] += "leads out of" in reason
    faulthandler.cancel_dump_traceback_later()
    return dict(counts)


@dataclass(frozen=True)
class FuzzAnnotations:
    """Send hostile annotation files through every reader."""

    files: int = 3000
    """Files to make."""
    seed: int = 0
    """Of the damage: the same files for a seed on any machine."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run, and print what became of the files."""
    import tyro

    config = tyro.cli(FuzzAnnotations, args=argv, prog="tests/fuzz_annotations.py")
    with tempfile.TemporaryDirectory() as folder:
        for name, value in fuzz(Path(folder), config.files, config.seed).items():
            print(f"{name:40s}{value}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
