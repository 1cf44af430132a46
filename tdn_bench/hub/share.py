"""Folders of networks written: from a checkpoint and its records, and from the Hub."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import printable
from tdn_bench import __version__
from tdn_bench.checkpoint import load_checkpoint
from tdn_bench.errors import UserError
from tdn_bench.hub.card import check_evidence, model_card
from tdn_bench.hub.folder import CARD, CONFIG, WEIGHTS, ModelConfig, read_folder
from tdn_bench.hub.names import HUB, check_repo, fetch, hub_errors, hub_library
from tdn_bench.models.variants import create_model
from tdn_bench.records import Record, check_folder, read_record

LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{1,50}")


def evidence(checkpoint: Path, files: Sequence[Path]) -> list[Record]:
    """The records that a card is made from; where none is named, the newest of the training beside the checkpoint.
    Raises UserError where there is none, or one is not of the checkpoint."""
    config = ModelConfig.of(checkpoint)
    if files:
        records = [read_record(path) for path in files]
        check_evidence(checkpoint, config, records)
        return records
    beside = [read_record(path) for path in sorted(checkpoint.parent.glob("train-*.json"))]
    for record in sorted(beside, key=lambda r: r.created_utc, reverse=True):
        try:
            check_evidence(checkpoint, config, [record])
        except UserError:
            continue
        return [record]
    raise UserError(f"{checkpoint}: no record of its training lies beside it; name it by --record FILE")


def check_share(checkpoint: Path, repo: str, licence: str) -> None:
    """Raise UserError for what could not be shared."""
    check_repo(repo)
    if not LICENCE.fullmatch(licence):
        raise UserError(
            f"--license {printable(licence)[:60]}: write it as the Hub does, such as apache-2.0 or cc-by-nc-4.0"
        )
    _try_weights(checkpoint, ModelConfig.of(checkpoint))


def _try_weights(checkpoint: Path, config: ModelConfig) -> None:
    """Raise CheckpointError where the weights are not whole, or not those of the network."""
    try:
        network = create_model(config.model, num_classes=len(config.classes), num_segments=config.num_segments)
    except ValueError as e:
        raise UserError(f"{checkpoint}: {e}") from e
    load_checkpoint(network, checkpoint, config.classes)


def write_folder(folder: Path, checkpoint: Path, repo: str, records: Sequence[Record], licence: str) -> None:
    """Write weights, configuration and card. Raises UserError where they cannot be written."""
    card = model_card(repo, checkpoint, records, licence)
    with _new_folder(folder) as new:
        shutil.copyfile(checkpoint, new / WEIGHTS)
        (new / CONFIG).write_bytes(ModelConfig.of(checkpoint).to_json(__version__))
        (new / CARD).write_text(card, encoding="utf-8")
        read_folder(new, str(folder))


def push(checkpoint: Path, repo: str, records: Sequence[Record], licence: str, *, private: bool, message: str) -> str:
    """Make the repository where there is none, and give it the folder's files; return its address. Raises UserError
    where that cannot be."""
    hub = hub_library()
    if hub.constants.HF_HUB_OFFLINE:
        raise UserError("the Hub's offline mode is on (HF_HUB_OFFLINE); switch it off, or use --dry-run DIR")
    if hub.get_token() is None:
        raise UserError("nobody is logged in at the Hub: `hf auth login`, or set HF_TOKEN")
    with tempfile.TemporaryDirectory(prefix="push-") as place, hub_errors(f"{HUB}{repo}"):
        folder = Path(place) / "model"
        write_folder(folder, checkpoint, repo, records, licence)
        api = hub.HfApi()
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    return address


def pull(repo: str, folder: Path) -> ModelConfig:
    """Fetch a repository's network into `folder`, its weights looked through. Raises UserError where that cannot be."""
    check_new_folder("--out", folder)
    weights, config = read_folder(fetch(repo), f"{HUB}{repo}")
    _try_weights(weights, config)
    with _new_folder(folder) as new:
        for name in (WEIGHTS, CONFIG, CARD):
            if (weights.parent / name).is_file():
                shutil.copyfile(weights.parent / name, new / name)
    return config


def check_new_folder(flag: str, folder: Path) -> None:
    """Raise UserError where a folder cannot be made, or holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{flag} {printable(str(folder))}: exists already; name a new folder")
    check_folder(flag, folder.parent)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends well."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder.parent) as place:
            new = Path(place) / "new"
            new.mkdir()
            yield new
            new.replace(folder)
    except OSError as e:
        raise UserError(f"{printable(str(folder))}: cannot be written ({e.strerror or e})") from e
