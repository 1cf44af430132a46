"""Work in other processes: in order, and ended by Ctrl-C without a word from them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from pipelines.processes import map_in_processes


@pytest.mark.parametrize(("workers", "chunksize"), [(1, 1), (2, 1), (2, 7)])
def test_results_come_in_order(workers: int, chunksize: int) -> None:
    numbers = list(range(-20, 20))
    assert list(map_in_processes(abs, numbers, workers, chunksize)) == [abs(n) for n in numbers]


SCRIPT = """
import signal
import sys
import time
from pipelines.processes import map_in_processes

def slow(number):
    time.sleep(0.01)
    return number

if __name__ == "__mp_main__":
    sys.stdout.write("starting\\n")  # in one piece, also unbuffered
    sys.stdout.flush()
    time.sleep(1)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is told to ignore it
    try:
        for number in map_in_processes(slow, range(100_000), 2):
            print(number, flush=True)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("moment", ["starting", "3"])
def test_ctrl_c_is_told_once(tmp_path: Path, moment: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = ROOT
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == moment:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
            break
    out, err = process.communicate(timeout=60)
    assert (out.splitlines()[-1], err, process.returncode) == ("interrupted", "", 0)
    assert "99999" not in out


KILLED = """
import sys
import time
from pipelines.processes import map_in_processes

def slow(number):
    sys.stdout.write(f"{__import__('os').getpid()}\\n")
    sys.stdout.flush()
    time.sleep(60)

if __name__ == "__main__":
    list(map_in_processes(slow, range(100), 2))
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    command, environment = [sys.executable, str(script)], os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    numbers = {process.stdout.readline() for _ in range(2)}
    assert len(numbers) == 2
    process.kill()
    assert process.stdout.read() == ""  # the end comes when nobody holds the pipe
    process.stdout.close()
    process.wait()


def test_no_more_processes_than_there_is_work() -> None:
    assert list(map_in_processes(abs, [-1, -2], 10**6)) == [1, 2]
    assert list(map_in_processes(abs, [], 4)) == []
