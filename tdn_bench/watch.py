"""Label a camera, a stream or a file as it plays."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict

from tdn_bench.cli import parse, run_command
from tdn_bench.errors import UserError
from tdn_bench.records import write_record
from tdn_bench.watching.flags import WatchFlags
from tdn_bench.watching.live import MAX_EVENTS
from tdn_bench.watching.output import JsonLines, Screen
from tdn_bench.watching.result import figures_of, state_of, summary
from tdn_bench.watching.session import Session

EXAMPLES = (
    "tdn-bench watch clip.mp4 --checkpoint runs/demo/tdn/best.safetensors",
    "tdn-bench watch /dev/video0 --checkpoint runs/demo/tdn/best.safetensors --window-s 2",
    "tdn-bench watch rtsp://camera/stream --checkpoint runs/demo/tdn/best.safetensors --json labels.jsonl",
    "tdn-bench watch clip.mp4 --checkpoint runs/demo/tdn/best.safetensors --no-realtime --overlay labelled.mp4",
)
COMMON = ("source", "checkpoint", "engine", "window_s", "every_ms", "top", "overlay", "json", "seconds", "realtime")


def main(argv: Sequence[str] | None = None) -> None:
    """Watch a source; print its labels as they come, and a summary."""
    flags = parse(WatchFlags, argv, "watch", examples=EXAMPLES, common=COMMON)
    session = Session(flags)
    screen = Screen(sys.stderr if str(flags.json) == "-" else sys.stdout)
    lines = JsonLines(flags.json)
    events: deque[tuple[float, str, str]] = deque(maxlen=MAX_EVENTS)
    try:
        stopped = _watch(session, screen, lines, events)
    finally:
        session.close()
        lines.close()
    if isinstance(stopped, BrokenPipeError):
        raise stopped
    if session.watch.ring is not None:
        for line in summary(session.watch, figures_of(session.watch)):
            screen.say(line)
        if flags.overlay is not None and session.watch.overlay is not None:
            overlay = session.watch.overlay
            lost = f", {overlay.dropped} left out" if overlay.dropped else ""
            screen.say(f"overlay: {flags.overlay} ({overlay.written} frames{lost})")
        if flags.results is not None:
            screen.say(f"record: {write_record(session.record(events), flags.results)}")
    if stopped is not None:
        raise stopped


def _watch(
    session: Session, screen: Screen, lines: JsonLines, events: deque[tuple[float, str, str]]
) -> BaseException | None:
    """Tell labels and events until the source or the user ends the watch; what ended it, if not the source's end."""
    stopped: BaseException | None = None

    def tell_events() -> None:
        while session.watch.happened:
            event = session.watch.happened.popleft()
            events.append(event)
            lines.write(event[1], {"elapsed_s": event[0], "text": event[2]})
            screen.say(f"{event[1]}: {event[2]}")

    try:
        with screen:
            begun = False
            for label in session.labels():
                if not begun:
                    begun = True
                    screen.say(session.facts_line())
                    lines.write("start", session.facts())
                tell_events()
                if label is not None:
                    lines.write("window", asdict(label) | session.watch.counts())
                    screen.show(label, state_of(session.watch))
            tell_events()
    except (KeyboardInterrupt, BrokenPipeError) as e:
        stopped = e
    except UserError as e:
        if session.watch.ring is None:
            raise
        stopped = e
    if not isinstance(stopped, BrokenPipeError):
        tell_events()
        if session.watch.ring is not None:
            lines.write("summary", figures_of(session.watch))
    return stopped


if __name__ == "__main__":
    raise SystemExit(run_command(main))
