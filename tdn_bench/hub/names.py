"""What a name of weights stands for: `hf-hub:user/repo[@revision]`, `local-dir:PATH`, or the path of a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.errors import printable
from tdn_bench.checkpoint import CheckpointError
from tdn_bench.errors import UserError
from tdn_bench.hub.folder import CARD, CONFIG, WEIGHTS, read_folder

HUB, FOLDER = "hf-hub:", "local-dir:"
REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def is_named(weights: str | Path) -> bool:
    """Whether this is a name, and not a path."""
    return str(weights).startswith((HUB, FOLDER))


def local_checkpoint(weights: str | Path) -> Path:
    """The file of a checkpoint that a name or a path stands for; what is on the Hub is fetched into its cache, once.
    Raises CheckpointError where there is no such folder or repository, or it is not whole."""
    text = str(weights)
    if text.startswith(HUB):
        return read_folder(fetch(text.removeprefix(HUB)), text)[0]
    if text.startswith(FOLDER):
        return read_folder(Path(text.removeprefix(FOLDER)).expanduser(), text)[0]
    return Path(weights)


def check_repo(repo: str) -> None:
    """Raise UserError for what is no name of a repository."""
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UserError(f"{printable(repo)[:100]}: no repository's name; write user/repo")


@cache
def fetch(repo: str) -> Path:
    """The folder of a repository, `user/repo` or `user/repo@revision`, in the Hub's cache on this machine; in the Hub's
    offline mode what is there already. Raises CheckpointError where it cannot be had."""
    name, _, revision = repo.partition("@")
    check_repo(name)
    hub = hub_library()
    with hub_errors(f"{HUB}{repo}"):
        found = hub.snapshot_download(name, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG, CARD])
    return Path(found)


def hub_library() -> Any:
    """huggingface_hub. Raises UserError where it is not installed."""
    try:
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as e:
        raise UserError(f"the Hugging Face Hub needs huggingface_hub ({e}): pip install huggingface_hub") from e
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Within, what the Hub's library raises becomes one line of a CheckpointError about `name`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as e:
        raise CheckpointError(f"{name}: its owner grants access; ask there, then `hf auth login`") from e
    except errors.RepositoryNotFoundError as e:
        raise CheckpointError(f"{name}: no such repository, or a private one: `hf auth login` lets you in") from e
    except errors.RevisionNotFoundError as e:
        raise CheckpointError(f"{name}: the repository has no such revision") from e
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as e:
        raise CheckpointError(f"{name}: not on this machine, and the Hub cannot be reached or is switched off") from e
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as e:
        why = printable((str(e).strip() or type(e).__name__).splitlines()[0])[:200]
        raise CheckpointError(f"{name}: {why}") from e
