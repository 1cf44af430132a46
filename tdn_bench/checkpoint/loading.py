"""Files of weights into a network: names, shapes and values are looked at before anything is copied."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.files import NO_FILE, fault_of_file
from tdn_bench.checkpoint.classes import match_classes
from tdn_bench.checkpoint.tensor_files import (
    CheckpointError,
    named_tensors,
    read_notes,
    read_pytorch,
    read_tensors,
    write_pytorch,
    write_tensors,
)
from tdn_bench.models.temporal_modules import GroupedSpatioTemporal, InflatedConvBN

# What weights, and counts, may be kept in.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class LoadReport:
    """What `load_checkpoint` did: tensors that the network never reads, the file's own notes, and a line for the user
    where its classes had to be matched to the data set's."""

    unused: tuple[str, ...]
    metadata: dict[str, object]
    class_note: str | None = None


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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (state dict, metadata) of a safetensors or a PyTorch file."""
    if path.suffix == ".safetensors":
        tensors, notes = read_tensors(path)
        return tensors, _own_notes(notes)
    loaded = read_pytorch(path)
    state: Any = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no state dict (a mapping of names to tensors)")
    if not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path}: its state dict has tensors without a name")
    notes = {k: v for k, v in loaded.items() if isinstance(v, (int, float, str))} if state is not loaded else {}
    return state, notes


def _own_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in notes.items() if name != "format"}


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
    values = {name: _as_number_of(target[name], *tensors[name], path) for name in needed}
    with torch.no_grad():
        for name, value in values.items():
            target[name].copy_(value)


def _as_number_of(wanted: Tensor, name: str, tensor: Tensor, path: Path) -> Tensor:
    """`tensor` in the type of `wanted`. Raises CheckpointError where it has values that no network can have."""
    if tensor.dtype not in (FLOATS if wanted.is_floating_point() else INTEGERS):
        raise CheckpointError(f"{path}: tensor {name} is {tensor.dtype}, the network's is {wanted.dtype}")
    value = tensor.to(wanted.dtype)
    if bad := int((~torch.isfinite(value)).sum()):
        raise CheckpointError(
            f"{path}: {bad} of {value.numel()} values of tensor {name} are NaN or infinite; "
            "the training that wrote it diverged, or the file is damaged: use an earlier checkpoint"
        )
    if name.endswith("running_var") and (value < 0).any():
        raise CheckpointError(f"{path}: tensor {name} has variances below zero; the file is damaged")
    return value


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


def load_checkpoint(model: nn.Module, path: str | Path, classes: Sequence[str] | None = None) -> LoadReport:
    """Load the project's own safetensors or a released `.pth.tar` (TDN, and TSN, TSM and TANet) into `model`.

    The authors' files may carry the `module.` prefix and either classifier name (`new_fc`, `base_model.fc`).
    `classes` are those of the data set that the network will see: where the file notes the same names in another order,
    the classifier's rows are put into the data set's (`match_classes`; the report's `class_note` says so).
    Raises CheckpointError for an unreadable or damaged file, a pickle with code in it, another network's file, missing
    or mis-shaped tensors, values that are not finite, and other classes.
    """
    return _load(model, Path(path), classes=classes)


def load_backbone(model: nn.Module, path: str | Path) -> LoadReport:
    """Load all but the classifier, which keeps its own start: the file may know other classes (fine-tuning).

    Takes the files that `load_checkpoint` takes, and raises CheckpointError as it does.
    """
    return _load(model, Path(path), keep="classifier.")


def _load(model: nn.Module, path: Path, keep: str = "", classes: Sequence[str] | None = None) -> LoadReport:
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
    note = None if classes is None else _order_classes(ours, metadata, classes, path)
    if keep:
        ours |= {name: (name, own) for name, own in model.state_dict().items() if name.startswith(keep)}
    _copy_into(model, ours, path)
    return LoadReport(unused, metadata, note)


def _order_classes(
    tensors: dict[str, tuple[str, Tensor]], notes: Mapping[str, Any], classes: Sequence[str], path: Path
) -> str | None:
    """Put the classifier's rows into the order of `classes`; a line for the user where there was anything to do."""
    head = {name: tensors[name] for name in ("classifier.weight", "classifier.bias") if name in tensors}
    known = known_classes(notes, path)
    match = match_classes(known, classes, path)
    for name, tensor in head.values():
        if not tensor.dim() or len(tensor) != len(known or classes):
            rows = len(tensor) if tensor.dim() else 0
            what = f"notes {len(known)}" if known is not None else f"the data set has {len(classes)}"
            raise CheckpointError(
                f"{path}: {name} is for {rows} classes, {what}; use it with the classes of its training"
            )
    if match.order is not None:
        rows_of = torch.tensor(match.order)
        tensors |= {key: (name, tensor[rows_of]) for key, (name, tensor) in head.items()}
    return match.note


def count_classes(path: str | Path) -> int:
    """For how many classes a checkpoint's classifier is, by its tensors. Raises CheckpointError as `load_checkpoint`
    does, and for a file without a classifier."""
    path = Path(path)
    state, _ = _read(path)
    renamed = _rename(state, () if path.suffix == ".safetensors" else _AUTHORS_NAMES)
    _, weight = renamed.get("classifier.weight", ("", None))
    if weight is None or weight.dim() != 2 or not len(weight):
        raise CheckpointError(f"{path}: has no classifier; is it a whole network's checkpoint?")
    return len(weight)


def known_classes(notes: Mapping[str, Any], path: Path) -> list[str] | None:
    """The class names in a checkpoint's notes, None without any. Raises CheckpointError for what are no names."""
    classes = notes.get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{path}: gives its classes as {str(classes)[:60]!r}, not as a list of names")
    return classes


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


def read_metadata(path: Path) -> dict[str, Any]:
    """The notes that `save_checkpoint` wrote beside the tensors; {} for a file of another kind."""
    return _own_notes(read_notes(path)) if path.suffix == ".safetensors" else {}


def save_checkpoint(model: nn.Module, path: str | Path, metadata: Mapping[str, object]) -> None:
    """Write the model's tensors and JSON-able notes as safetensors with a checksum, whole or not at all. Raises
    CheckpointError where that cannot be done."""
    write_tensors(Path(path), model.state_dict(), metadata)


def write_training_state(path: Path, state: Mapping[str, object]) -> None:
    """Write what `--resume` needs (tensors and plain values) with a checksum, whole or not at all. Raises
    CheckpointError where that cannot be done."""
    write_pytorch(path, state)


def read_training_state(path: Path) -> dict[str, Any]:
    """Read what `write_training_state` wrote. Raises CheckpointError where there is nothing to resume from, and for a
    file that is damaged or of another kind."""
    if fault_of_file(path) == NO_FILE:
        raise CheckpointError(f"{path}: nothing to resume from; start without --resume")
    state = read_pytorch(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: is no state of a training run; start without --resume")
    for name, tensor in named_tensors(state):
        if tensor.dtype in FLOATS and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} has values that are NaN or infinite; nothing can be resumed from it")
    return state


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
