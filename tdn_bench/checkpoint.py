"""Weights in and out: the project's safetensors, the authors' released files, ImageNet starts.

Nothing here unpickles arbitrary objects: safetensors holds tensors only, and `.pth`/`.pth.tar` files are read
with `weights_only=True`, which refuses any pickle that would run code.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tdn_bench.errors import UserError
from tdn_bench.models.temporal_modules import GroupedSpatioTemporal, InflatedConvBN


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or that belongs to another network."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did: tensors that the network never reads, and the file's own notes."""

    unused: tuple[str, ...]
    metadata: dict[str, object]


# The names in released state dicts (without `module.`) → ours, applied in turn: TDN's; then those of TSN and TSM as in
# TSM's repository, and TANet's.
_AUTHORS_NAMES = (
    (r"^(new_fc|base_model\.fc)\.", "classifier."),
    (r"^base_model\.conv1_5\.0\.", "short_term.stem.conv."),
    (r"^base_model\.conv1_5\.1\.", "short_term.stem.bn."),
    (r"^base_model\.(conv|bn)1\.", r"stem.\1."),
    (r"^base_model\.resnext_layer1\.", "short_term.res2."),
    (r"^base_model\.layer1_bak\.", "res2."),
    (r"^base_model\.layer2_bak\.", "res3."),
    (r"^base_model\.layer3_bak\.", "res4."),
    (r"^base_model\.layer4_bak\.", "res5."),
    (r"\.mse\.(conv|bn)1\.", r".temporal.difference.squeeze.\1."),
    (r"\.mse\.conv2\.", ".temporal.difference.smooth."),
    (r"\.mse\.(conv|bn)3_smallscale2\.", r".temporal.difference.half_scale.\1."),
    (r"\.mse\.(conv|bn)3_smallscale4\.", r".temporal.difference.full_scale.\1."),
    (r"\.mse\.(conv|bn)3\.", r".temporal.difference.expand.\1."),
    (r"\.shift\.conv\.", ".temporal.conv."),
    (r"^base_model\.layer1\.", "res2."),
    (r"^base_model\.layer2\.", "res3."),
    (r"^base_model\.layer3\.", "res4."),
    (r"^base_model\.layer4\.", "res5."),
    (r"\.conv1\.net\.", ".conv1."),
    (r"\.tam\.G\.", ".temporal.kernel."),
    (r"\.tam\.L\.", ".temporal.gate."),
    (r"^(res\d\.\d+)\.net\.", r"\1."),
    (r"(\.\d+)\.(conv|bn)(\d)\.", r"\1.conv\3.\2."),  # a bottleneck's three convolutions
    (r"\.downsample\.0\.", ".downsample.conv."),
    (r"\.downsample\.1\.", ".downsample.bn."),
)

# torchvision's ResNet names → ours; and Res2Net's, as its authors and timm name them, for TEA.
_TORCHVISION_NAMES = (
    (r"\.convs\.(\d)\.", r".conv2.convs.\1.conv."),
    (r"\.bns\.(\d)\.", r".conv2.convs.\1.bn."),
    (r"^(conv|bn)1\.", r"stem.\1."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    *_AUTHORS_NAMES[-3:],
)

# Variants of which authors released weights, and a name that tells their files from the others'.
_RELEASED = {"tdn": r"\.mse\.", "tsm": r"\.conv1\.net\.", "tanet": r"\.tam\.", "tsn": r"base_model\.layer1\."}


def _rename(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, tuple[str, Tensor]]:
    """Return {our name: (name in the file, tensor)}."""
    renamed = {}
    for name, tensor in state.items():
        ours = name.removeprefix("module.")
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        renamed[ours] = (name, tensor)
    return renamed


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return (state dict, metadata) of a safetensors or a PyTorch file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as f:
                notes = {k: json.loads(v) for k, v in (f.metadata() or {}).items() if k != "format"}
                return {name: f.get_tensor(name) for name in f.keys()}, notes  # noqa: SIM118 (no __iter__)
        except (SafetensorError, json.JSONDecodeError) as e:
            raise CheckpointError(f"{path}: not a readable safetensors file ({e})") from e
    loaded = _load_pytorch(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no state dict (a mapping of names to tensors)")
    notes = {k: v for k, v in loaded.items() if isinstance(v, (int, float, str))} if state is not loaded else {}
    return state, notes


def _load_pytorch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise CheckpointError(
            f"{path}: refused, it holds objects other than tensors and plain values "
            f"({_unpickling_reason(e)}); save its state_dict alone"
        ) from e
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as e:
        # what torch.load raises on damaged archives depends on where the damage is
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({_first_line(e)})") from e


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _unpickling_reason(error: BaseException) -> str:
    found = re.search(r"(Unsupported (?:global|class|operand)[^\n]*?)(?: was not|\n|$)", str(error))
    return found.group(1) if found else _first_line(error)


def _copy_into(module: nn.Module, tensors: Mapping[str, tuple[str, Tensor]], path: Path) -> None:
    """Copy tensors into the module; every tensor of the module must be there, in its shape."""
    target = module.state_dict()
    # A count of seen batches, absent from old files, changes nothing at inference.
    needed = [n for n in target if not n.endswith("num_batches_tracked") or n in tensors]
    missing = [n for n in needed if n not in tensors]
    wrong = [n for n in needed if n in tensors and tensors[n][1].shape != target[n].shape]
    if missing:
        raise CheckpointError(
            f"{path}: is of another network: {len(missing)} of {len(target)} tensors missing, first {missing[0]}"
        )
    if wrong:
        name, tensor = tensors[wrong[0]]
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors of another shape, first {name}: {tuple(tensor.shape)} in the file, "
            f"{tuple(target[wrong[0]].shape)} in the network"
        )
    with torch.no_grad():
        for name in needed:
            target[name].copy_(tensors[name][1])


def _unused(tensors: Mapping[str, tuple[str, Tensor]], model: nn.Module, path: Path) -> tuple[str, ...]:
    """The file's names of tensors that the network never reads; a whole layer among them is an error, because a
    ResNet-101's tensors fit a ResNet-50, and a TDN's a TSN."""
    known = model.state_dict()
    unused = {key: name for key, (name, _) in tensors.items() if key not in known}
    layers = [name for key, name in sorted(unused.items()) if re.match(r"(short_term|res\d)\.", key)]
    if layers:
        raise CheckpointError(
            f"{path}: is of another network: {len(layers)} tensors have no place in this one, first {layers[0]}"
        )
    return tuple(sorted(unused.values()))


def load_checkpoint(model: nn.Module, path: str | Path) -> LoadReport:
    """Load the project's own safetensors or a released `.pth.tar` (TDN, and TSN, TSM and TANet) into `model`.

    The authors' files may carry the `module.` prefix and either classifier name (`new_fc`, `base_model.fc`).
    Raises CheckpointError for an unreadable file, a pickle with code in it, another network's file, and missing or
    mis-shaped tensors.
    """
    return _load(model, Path(path), keep="")


def load_backbone(model: nn.Module, path: str | Path) -> LoadReport:
    """Load all but the classifier, which keeps its own start: the file may know other classes (fine-tuning).

    Takes the files that `load_checkpoint` takes, and raises CheckpointError as it does.
    """
    return _load(model, Path(path), keep="classifier.")


def _load(model: nn.Module, path: Path, keep: str) -> LoadReport:
    """Load a checkpoint; tensors whose names start with `keep` (if not empty) stay the model's."""
    state, metadata = _read(path)
    own = path.suffix == ".safetensors"
    wanted = getattr(model, "variant", None)
    found = _variant_of(str(metadata.get("model", ""))) if own else _released_variant(state)
    if None not in (wanted, found) and wanted != found:
        raise CheckpointError(f"{path}: is of another network: its weights are a {found}'s, this one is a {wanted}")
    ours = _rename(state, () if own else _AUTHORS_NAMES)
    if found in ("tsn", "tsm", "tanet") and not own:  # torchvision's backbone: its convolutions have no bias
        _add_biases(ours, model)
    unused = _unused(ours, model, path)
    if keep:
        ours |= {name: (name, own) for name, own in model.state_dict().items() if name.startswith(keep)}
    _copy_into(model, ours, path)
    return LoadReport(unused, metadata)


def _variant_of(name: str) -> str | None:
    """The variant in a model's name; None without one."""
    return name.rpartition("_resnet")[0] or None


def _released_variant(state: Mapping[str, Tensor]) -> str | None:
    """Whose network a released state dict is; None where its names do not tell."""
    return next((v for v, mark in _RELEASED.items() if any(re.search(mark, name) for name in state)), None)


def _add_biases(tensors: dict[str, tuple[str, Tensor]], model: nn.Module) -> None:
    """Add zeros for the biases of convolutions, where a file has none."""
    for name, tensor in model.state_dict().items():
        if name.endswith(".conv.bias") and name not in tensors:
            tensors[name] = (name, torch.zeros_like(tensor))


def read_metadata(path: Path) -> dict[str, object]:
    """The notes that `save_checkpoint` wrote beside the tensors; {} for a file of another kind."""
    return _read(path)[1] if path.suffix == ".safetensors" else {}


def save_checkpoint(model: nn.Module, path: str | Path, metadata: Mapping[str, object]) -> None:
    """Write the model's tensors and JSON-able notes as safetensors, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    notes = {k: json.dumps(v) for k, v in metadata.items()}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
        temporary = Path(folder) / path.name
        save_file(tensors, temporary, metadata={"format": "pt", **notes})
        os.replace(temporary, path)


def clear_debris(folder: Path) -> None:
    """Remove what killed processes left in `folder` of the files that they were saving; nobody else may save there."""
    for left in folder.glob(".saving-*"):
        shutil.rmtree(left, ignore_errors=True)


def write_training_state(path: Path, state: Mapping[str, object]) -> None:
    """Write what `--resume` needs (tensors and plain values), atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
        temporary = Path(folder) / path.name
        with temporary.open("wb") as file:  # of its own accord torch calls a full disk a RuntimeError
            torch.save(dict(state), file)
        os.replace(temporary, path)


def read_training_state(path: Path) -> dict[str, Any]:
    """Read what `write_training_state` wrote. Raises CheckpointError where there is nothing to resume from."""
    if not path.is_file():
        raise CheckpointError(f"{path}: nothing to resume from; start without --resume")
    return _load_pytorch(path)


def load_imagenet(model: nn.Module, path: str | Path) -> LoadReport:
    """Start `model` from a torchvision-named ResNet state dict: backbone, S-TDM stem and its copies of stages.

    The S-TDM's kernel is the RGB kernel's mean over its input channels, repeated; its stages start as copies. A kernel
    that is inflated over time (I3D) starts as copies divided by their number; of GST's grouped convolution the spatial
    part starts as the slice that its channels are. Convolution biases (absent from torchvision's networks) start at
    zero; the temporal modules and the classifier keep their own start. TEA takes Res2Net's weights (26w × 4s).
    Raises CheckpointError as `load_checkpoint` does.
    """
    path = Path(path)
    state, _ = _read(path)
    given = _rename(state, _TORCHVISION_NAMES)
    target = model.state_dict()
    if "stem.conv.weight" in given and "short_term.stem.conv.weight" in target:
        name, kernel = given["stem.conv.weight"]
        inputs = target["short_term.stem.conv.weight"].shape[1]
        given["short_term.stem.conv.weight"] = (name, kernel.mean(1, keepdim=True).repeat(1, inputs, 1, 1))
        copies = {f"short_term.{k}": v for k, v in given.items() if k.startswith(("stem.bn.", "res2.", "res3."))}
        given |= {k: v for k, v in copies.items() if k in target}
    for place, module in model.named_modules():
        if isinstance(module, InflatedConvBN) and (kernel_of := given.get(f"{place}.conv.weight")):
            name, kernel = kernel_of
            given[f"{place}.conv.weight"] = (name, kernel.repeat(1, module.depth, 1, 1) / module.depth)
        elif isinstance(module, GroupedSpatioTemporal):
            _split_for_gst(given, place, module)
    own = {name: (name, tensor) for name, tensor in target.items() if _OWN_START.search(name)}
    given = own | given
    _add_biases(given, model)
    _copy_into(model, given, path)
    return LoadReport(_unused(given, model, path), {})


# What no image network has.
_OWN_START = re.compile(r"^classifier\.|\.temporal\.|\.conv2\.(squeeze|smooth|expand|shifts)\.")


def _split_for_gst(tensors: dict[str, tuple[str, Tensor]], place: str, module: GroupedSpatioTemporal) -> None:
    """Give GST's two convolutions their part of a 3×3 convolution and its batch norm (as its authors do)."""
    spatial = module.spatial.conv
    for key in [k for k in tensors if k.startswith((f"{place}.conv.", f"{place}.bn."))]:
        name, tensor = tensors.pop(key)
        part, leaf = key.removeprefix(f"{place}.").split(".")
        if part == "conv":
            tensors[f"{place}.spatial.conv.weight"] = (name, tensor[: spatial.out_channels, : spatial.in_channels])
        elif tensor.dim():
            tensors[f"{place}.spatial.bn.{leaf}"] = (name, tensor[: spatial.out_channels])
            tensors[f"{place}.temporal.bn.{leaf}"] = (name, tensor[spatial.out_channels :])
        else:  # the count of seen batches
            tensors |= {f"{place}.{p}.bn.{leaf}": (name, tensor) for p in ("spatial", "temporal")}
