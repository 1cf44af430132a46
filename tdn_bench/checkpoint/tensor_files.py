"""Files of tensors: safetensors with notes, and PyTorch's. Sizes are looked at before memory is taken, and a checksum
over names, types, shapes, values and notes is written with them and compared when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipelines.files import NO_FILE, fault_of_file, write_whole
from tdn_bench.errors import UserError

CHECKSUM = "checksum"  # its name among the notes, and in a training state
MAX_HEADER_BYTES = 2**24  # of a safetensors file: names, shapes, notes

# What people save under a checkpoint's name, by how it begins, and what to do.
_OTHER_KINDS = (
    (rb"\s*<", "is a web page, not a checkpoint; download the file itself"),
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|Rar!|7z\xbc\xaf", "is a compressed file; unpack it first"),
    (rb"(?s).{257}ustar", "is a tar archive; unpack it first"),
    (rb"\x89HDF", "is an HDF5 file, not a checkpoint of PyTorch"),
)
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # the new and the old form of torch.save


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that belongs to another network."""


def checksum(value: object) -> str:
    """sha256 of tensors, plain values, and mappings and sequences of them."""
    total = hashlib.sha256()
    _add(total, value)
    return f"sha256:{total.hexdigest()}"


def _add(total: Any, value: object) -> None:
    if isinstance(value, Tensor):
        total.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        total.update(f"mapping {len(value)} ".encode())
        for name, item in value.items():
            _add(total, name)
            _add(total, item)
    elif isinstance(value, (list, tuple)):
        total.update(f"sequence {len(value)} ".encode())
        for item in value:
            _add(total, item)
    else:
        text = repr(value)
        total.update(f"{type(value).__name__} {len(text)} {text} ".encode("utf-8", "surrogatepass"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, object], kind: str = "pt") -> None:
    """Write tensors and JSON-able notes as safetensors with a checksum, whole or not at all; `kind` is noted under
    `format`. Raises CheckpointError where the file cannot be written."""
    assert not {"format", CHECKSUM} & notes.keys()
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {"format": kind} | {name: json.dumps(value) for name, value in notes.items()}
    _write(path, save(whole, texts | {CHECKSUM: _checksum_of(whole, texts)}))


def write_pytorch(path: Path, state: Mapping[str, object]) -> None:
    """Write tensors and plain values by torch.save with a checksum, whole or not at all. Raises CheckpointError where
    the file cannot be written."""
    assert CHECKSUM not in state
    content = io.BytesIO()  # torch.save tells a full disk from other errors by no message that could be shown
    torch.save(dict(state) | {CHECKSUM: checksum(state)}, content)
    _write(path, content.getbuffer())


def _write(path: Path, content: bytes | memoryview) -> None:
    try:
        write_whole(path, content)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be written ({e.strerror})") from e


def _checksum_of(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """Of a safetensors file, which keeps no order."""
    return checksum([dict(sorted(tensors.items())), dict(sorted(texts.items()))])


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a safetensors file, its tensors unread: a text that is no JSON stays as it is. Raises
    CheckpointError for an unreadable file."""
    with _opened(path) as file:
        return _decoded(file.metadata())


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the notes of a safetensors file. Raises CheckpointError for an unreadable or damaged file; one
    without a checksum, which others wrote, is taken as it is."""
    with _opened(path) as file:
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no __iter__)
        except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as e:
            raise CheckpointError(f"{path}: not a readable safetensors file ({first_line(e)})") from e
        texts = dict(file.metadata() or {})
    noted = texts.pop(CHECKSUM, None)
    if noted is not None and noted != _checksum_of(tensors, texts):
        raise _damaged(path)
    return tensors, _decoded(texts)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: is damaged, its checksum does not fit its content; copy or make it again")


def _opened(path: Path) -> Any:
    _check_kind(path)
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith((_ZIP, _PICKLE + b"\x02")):
        raise CheckpointError(f"{path}: is a PyTorch file by its content; rename it to .pth")
    if int.from_bytes(head, "little") > min(MAX_HEADER_BYTES, path.stat().st_size):
        raise CheckpointError(f"{path}: not a readable safetensors file (its header would be larger than it may be)")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as e:
        raise CheckpointError(f"{path}: not a readable safetensors file ({first_line(e)})") from e


def _decoded(texts: Mapping[str, str] | None) -> dict[str, Any]:
    notes: dict[str, Any] = {}
    for name, text in (texts or {}).items():
        try:
            notes[name] = json.loads(text)
        except (ValueError, RecursionError):
            notes[name] = text
    notes.pop(CHECKSUM, None)
    return notes


def _check_kind(path: Path) -> None:
    """Raise CheckpointError for what is no regular file, or begins like a file of another kind."""
    if (fault := fault_of_file(path)) is not None:
        raise CheckpointError(f"{path}: no such checkpoint file" if fault == NO_FILE else f"{path}: {fault}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror})") from e
    for start, what in _OTHER_KINDS:
        if re.match(start, head):
            raise CheckpointError(f"{path}: {what}")


def read_pytorch(path: Path) -> Any:
    """What torch.save wrote, on the CPU: tensors and plain values. A mapping's checksum is compared and left out.

    Raises CheckpointError for a file that is none, is damaged, holds other objects, or claims more memory than bytes.
    """
    _check_kind(path)
    loaded = _load(path)
    try:
        for name, tensor in named_tensors(loaded):
            _check_plain(tensor, f"{path}: refused, {name or 'what it holds'}", path.stat().st_size)
        if isinstance(loaded, dict) and CHECKSUM in loaded and loaded.pop(CHECKSUM) != checksum(loaded):
            raise _damaged(path)
    except RecursionError as e:
        raise CheckpointError(f"{path}: refused, its values are nested too deeply") from e
    return loaded


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(10)
    if head[8:] == b'{"':
        raise CheckpointError(f"{path}: is a safetensors file by its content; rename it to .safetensors")
    if not head.startswith((_ZIP, _PICKLE)):
        raise CheckpointError(f"{path}: is no checkpoint of PyTorch, to judge by how it begins")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"\nbytearray\n") >= 0:  # the one plain value that can claim any amount of memory
                raise CheckpointError(f"{path}: refused, it holds a bytearray, as no checkpoint does")
        if head.startswith(_ZIP):
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as e:
        raise CheckpointError(
            f"{path}: refused, it holds objects other than tensors and plain values "
            f"({_unpickling_reason(e)}); save its state_dict alone"
        ) from e
    except Exception as e:  # what torch.load raises on a damaged file depends on where the damage is
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({first_line(e)})") from e


def _check_archive(path: Path) -> None:
    """Raise CheckpointError for a zip archive that would grow: PyTorch never compresses."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(f"{path}: is a TorchScript program, not a checkpoint; save its state_dict instead")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path}: refused, it is a compressed archive of {unpacked} bytes; PyTorch does not compress checkpoints"
        )


def named_tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in mappings and sequences, named by the way to them."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from named_tensors(item, f"{name}.{i}" if name else str(i))


def _check_plain(tensor: Tensor, what: str, most_bytes: int) -> None:
    """Raise CheckpointError for a tensor that is not just numbers in memory, or claims to have more than it can."""
    if (
        type(tensor) not in (Tensor, nn.Parameter)
        or tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_meta
        or tensor.is_nested
    ):
        raise CheckpointError(f"{what} is a sparse, quantised or nested tensor, or one without values")
    if tensor.numel() * tensor.element_size() > most_bytes:
        raise CheckpointError(f"{what} is a tensor of shape {tuple(tensor.shape)}, larger than the file")


def first_line(error: BaseException) -> str:
    """An error's message, at most its first line. PyTorch's advice to read a file without `weights_only`, which would
    run what is in it, is not passed on."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return type(error).__name__ if "weights_only" in line else line


def _unpickling_reason(error: BaseException) -> str:
    """What a pickle names that is not to be had. The rest of PyTorch's message advises to run it."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found.group(1) if found else "its pickle is not one of PyTorch's"
