"""Manifests that are damaged, changed by other programs, or say what no data set can: one line, never other data."""

import hashlib
import os
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines.errors import DataError
from pipelines.manifest import Manifest, Sample, Video, VideoFile
from pipelines.sealed import UNSEALED, write_sealed

VIDEOS = [
    Video(
        Sample(f"v{i}", f"/set/{i}.mp4", i % 3, ("train", "validation", "test")[i % 3]), VideoFile(10 + i, num_frames=9)
    )
    for i in range(12)
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    Manifest.of("set", ("a", "b", "c"), VIDEOS, Path("/set")).write(tmp_path / "m.arrow")
    return tmp_path / "m.arrow"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        Manifest.open(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def sealed_anew(path: Path, table: pa.Table, **notes: str) -> None:
    """As somebody would write it who knows how the checksum is made."""
    known = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    write_sealed(table.replace_schema_metadata(known | {"checksum": UNSEALED} | notes), path)


def test_no_damage_is_silent(manifest: Path) -> None:
    whole, rng = manifest.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        match rng.randrange(3):
            case 0:
                damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            case 1:
                del damaged[rng.randrange(len(whole)) :]
            case 2:
                start = rng.randrange(len(whole) - 16)
                damaged[start : start + 16] = rng.randbytes(16)
        manifest.write_bytes(damaged)
        assert "not a readable manifest" in refusal(manifest)


def test_rows_left_out_by_another_program_are_found(manifest: Path) -> None:
    table = pa.ipc.open_file(str(manifest)).read_all()
    some = table.filter(pc.not_equal(table["split"].cast(pa.utf8()), "test"))
    with pa.ipc.new_file(str(manifest), some.schema) as writer:  # its notes, digest and checksum included
        writer.write_table(some)
    assert "its checksum does not fit" in refusal(manifest)
    for note in ("digest", "checksum"):
        notes = {k.decode(): v.decode() for k, v in table.schema.metadata.items()} | {note: "0" * 64}
        with pa.ipc.new_file(str(manifest), table.replace_schema_metadata(notes).schema) as writer:
            writer.write_table(table.replace_schema_metadata(notes))
        assert "checksum" in refusal(manifest)


def test_a_digest_is_of_the_rows_not_of_a_note(manifest: Path) -> None:
    sealed_anew(manifest, pa.ipc.open_file(str(manifest)).read_all(), digest="0" * 64)
    rows = "".join(f"{v.id}\t{v.sample.label}\t{v.sample.split}\t\tok\n" for v in VIDEOS)
    assert Manifest.open(manifest).digest() == hashlib.sha256(rows.encode()).hexdigest()


def column(name: str, value: object) -> object:
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[1] = value  # of a validation video
        place = table.column_names.index(name)
        return table.set_column(place, table.schema.field(name), [pa.array(values, table.schema.field(name).type)])

    return change


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", 99, "label goes from 0 to 99"),
        ("label", -2, "label goes from -2 to 2"),
        ("label", -1, "have no label"),
        ("label", None, "1 rows have no label"),
        ("split", "holdout", "'holdout', which is none of train, validation, test"),
        ("num_frames", -5, "num_frames goes from -5 to 9"),
        ("fps", float("nan"), "fps goes from"),
        ("fps", float("inf"), "fps goes from"),
        ("path", "a\0b.mp4", "NUL"),
        ("path", None, "1 rows have no path"),
    ],
)
def test_what_no_data_set_has_is_refused(manifest: Path, name: str, value: object, message: str) -> None:
    sealed_anew(manifest, column(name, value)(pa.ipc.open_file(str(manifest)).read_all()))
    assert message in refusal(manifest)


@pytest.mark.parametrize(
    "notes",
    [
        {"classes": "[" * 100_000},
        {"classes": '"abc"'},
        {"classes": "[1, 2, 3]"},
        {"classes": "9" * 5000},
        {"classes": '["a"]'},  # labels go to 2
        {"root": "set"},
        {"root": "/a\0b"},
        {"manifest_version": "1"},
    ],
    ids=lambda notes: next(iter(notes)),
)
def test_notes_that_are_none_are_refused(manifest: Path, notes: dict[str, str]) -> None:
    sealed_anew(manifest, pa.ipc.open_file(str(manifest)).read_all(), **notes)
    assert "tdn-bench prepare" in refusal(manifest)


def test_values_that_are_not_valid_arrow_are_refused(manifest: Path) -> None:
    """An index beyond its dictionary, once read, ends the process."""
    whole = manifest.read_bytes()
    table = pa.ipc.open_file(str(manifest)).read_all()
    indices = table["split"].chunk(0).indices.buffers()[1].to_pybytes()[:48]
    damaged = whole.replace(indices, b"\xff\xff\xff\x0f" * 12)
    assert damaged != whole
    seal = re.compile(re.escape(UNSEALED[:-64].encode()) + b"([0-9a-f]{64})")
    zeros = seal.sub(UNSEALED.encode(), damaged)
    digest = hashlib.sha256(zeros).hexdigest().encode()
    manifest.write_bytes(zeros.replace(UNSEALED.encode(), UNSEALED[:-64].encode() + digest))
    assert "out of bounds" in refusal(manifest)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "empty", "missing", "NUL"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.arrow"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path = Path("/dev/zero")
        case "empty":
            path.touch()
        case "NUL":
            path = tmp_path / "a\0b"
    assert "not a readable manifest" in refusal(path)
