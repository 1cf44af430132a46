"""Running a command, and the flags that several commands share: small dataclasses, put together by composition."""

from tdn_bench.cli.child import Command, last_error_line
from tdn_bench.cli.config_file import begin_run
from tdn_bench.cli.device import pick_device
from tdn_bench.cli.flags import (
    BuildFlags,
    DataFlags,
    LimitFlags,
    LoaderFlags,
    Network,
    NetworkFlags,
    SourceFlags,
    known_variant,
)
from tdn_bench.cli.run import parse, parse_kind, parse_subcommand, run_command
from tdn_bench.cli.settings import as_flags, check_range, flag, settings_of
from tdn_bench.cli.workload import SYNTHETIC_DATA, Workload, WorkloadFlags, calibration_clips

__all__ = [
    "SYNTHETIC_DATA",
    "BuildFlags",
    "Command",
    "DataFlags",
    "LimitFlags",
    "LoaderFlags",
    "Network",
    "NetworkFlags",
    "SourceFlags",
    "Workload",
    "WorkloadFlags",
    "as_flags",
    "begin_run",
    "calibration_clips",
    "check_range",
    "flag",
    "known_variant",
    "last_error_line",
    "parse",
    "parse_kind",
    "parse_subcommand",
    "pick_device",
    "run_command",
    "settings_of",
]
