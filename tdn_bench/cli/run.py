"""How every command ends: the user's errors in one line, and exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from engines import EngineError
from pipelines.errors import DataError
from tdn_bench.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def run_command(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's `main`; the user's errors become one line on stderr and exit status 2."""
    try:
        command(argv)
    except (UserError, DataError, EngineError) as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:  # `… | head` has read enough; what is left must not fail again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
