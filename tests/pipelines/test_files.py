"""Files written whole or not at all, and what killed runs leave."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.paths import ROOT

from pipelines.files import clear_debris, fault_of_file, temporary_beside, whole_file

HOLD = """
import sys, time
from pathlib import Path
from pipelines.files import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_sets_the_mode(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "new" / "a.txt") as temporary:
            temporary.write_text("whole")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_what_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_debris_of_a_killed_writer_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "a.bin")], cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.glob(".saving-*"))) == 2
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        clear_debris(tmp_path)
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(f".saving-{writers[1].pid}-")
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    clear_debris(tmp_path)
    assert not list(tmp_path.iterdir())


def test_debris_is_told_from_other_files(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [f".a.mp4.{dead.pid}.part", f".a.arrow.{dead.pid}.tmp", ".saving-k2f9x", ".saving-abc.safetensors"]
    stay = [f".a.mp4.{os.getpid()}.part", ".a.tmp", "a.part", "saving-a", f"a.{dead.pid}.tmp", ".hidden.part"]
    for name in gone + stay:
        (tmp_path / name).write_text(name)
    (tmp_path / ".saving-folder").mkdir()  # as earlier versions left them
    (tmp_path / ".saving-folder" / "last.pt").write_text("half")
    (tmp_path / ".saving-link").symlink_to(tmp_path)
    clear_debris(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*stay, ".saving-link"])
    clear_debris(tmp_path / "no such folder")


def test_clearing_never_takes_a_file_that_is_being_written(tmp_path: Path) -> None:
    done = threading.Event()

    def clear() -> None:
        while not done.is_set():
            clear_debris(tmp_path)

    clearer = threading.Thread(target=clear)
    clearer.start()
    try:
        for i in range(100):
            with temporary_beside(tmp_path / "a") as temporary:
                temporary.write_text(str(i))
                os.replace(temporary, tmp_path / "a")
            assert (tmp_path / "a").read_text() == str(i)
    finally:
        done.set()
        clearer.join()


def test_only_regular_files_have_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    assert fault_of_file(tmp_path / "a") is fault_of_file(tmp_path / "link") is None
    assert fault_of_file(tmp_path / "a", most_bytes=2) == "has 3 bytes, more than 2"
    faults = {name: fault_of_file(tmp_path / name) for name in ("no", ".", "loop", "empty", "pipe", "\0", "x" * 300)}
    assert None not in faults.values()
    assert faults["no"] == "no such file"
    assert faults["empty"] == "is empty"
    assert faults["."] == "is a folder, not a file"
    assert faults["pipe"] == fault_of_file(Path("/dev/zero")) == "is a pipe or a device, not a file"
