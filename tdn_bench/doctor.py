"""What this machine can run, and for what is missing, how to get it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines import ENGINES, supported_precisions, why_unavailable
from tdn_bench.cli import run_command
from tdn_bench.environment import describe_machine, versions
from tdn_bench.flags import pick_device
from tdn_bench.models import list_models
from tdn_bench.recipes import RECIPES


@dataclass(frozen=True)
class Doctor:
    """Say which engines and loader backends are ready here."""

    device: str = "auto"
    """cuda, cuda:1, cpu; auto takes a GPU where there is one."""


def why_no_dali() -> str | None:
    """None where DALI can be imported, else why not."""
    try:
        import nvidia.dali.experimental.dynamic  # noqa: F401
    except ImportError as e:
        return f"{e}: pip install nvidia-dali-cuda120"
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Say which engines and loader backends are ready here, and how to get the others."""
    import tyro

    device = pick_device(tyro.cli(Doctor, args=argv, prog="tdn-bench doctor").device)
    print("machine")
    for key, value in describe_machine(device).items():
        print(f"  {key:20s}{value}")
    print("versions\n  " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    print("engines")
    for engine in ENGINES:
        where = "cpu" if engine == "openvino" else str(device)
        reason = why_unavailable(engine, where)
        ready = f"ready: {', '.join(supported_precisions(engine, where))}"
        print(f"  {engine:10s}{ready if reason is None else f'missing: {reason}'}")
    print("loader backends\n  pyav      ready")
    reason = why_no_dali()
    print(f"  dali      {'missing: ' + reason if reason else 'ready on the ' + device.type}")


def list_main(argv: Sequence[str] | None = None) -> None:
    """Name the networks and the recipes."""
    print("models\n  " + "\n  ".join(list_models()))
    print("recipes")
    for name, make in RECIPES.items():
        print(f"  {name:14s}{(make.__doc__ or '').splitlines()[0]}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
