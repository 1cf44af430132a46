"""Folders and files that others can write are refused, whoever made them, and seals are each user's own."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import storage.private
from storage.private import NotPrivate, open_private, private_folder, read_sealed, seal, state_folder, write_sealed

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder below /tmp that other users can enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(os.path.realpath(name))


@pytest.fixture
def keys(folder: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    return folder / "state" / "tdn_bench" / "seal.key"


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_what_is_made_is_for_this_user_alone(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert private_folder(folder / "a" / "b") == folder / "a" / "b"
        write_sealed(folder / "a" / "b" / "c" / "file", b"content")
    finally:
        os.umask(before)
    assert modes(folder) == {0o700, 0o600}


def own(path: Path) -> None:
    os.chown(path, NOBODY, -1)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written by all": lambda path: path.chmod(0o777),
    "written by a group": lambda path: (path.chmod(0o775), os.chown(path, -1, 12345)),
    "another's": own,
    "another's, and closed": lambda path: (path.chmod(0o500), own(path)),
}


@as_root
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", ["a", "a/b", "a/b/c"])
def test_a_folder_that_others_can_write_is_refused_wherever_it_lies_on_the_path(folder: Path, change, place) -> None:
    private_folder(folder / "a" / "b" / "c")
    CHANGES[change](folder / place)
    with pytest.raises(NotPrivate, match=f"^{folder / place} (can be written by other users|belongs to another user)"):
        private_folder(folder / "a" / "b" / "c")
    with pytest.raises(NotPrivate):
        private_folder(folder / "a" / "b" / "c" / "new")
    assert not (folder / "a" / "b" / "c" / "new").exists()


@as_root
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_others_can_write_is_not_opened(folder: Path, change) -> None:
    (path := folder / "file").touch(0o600)
    open_private(path).close()
    CHANGES[change](path)
    with pytest.raises(NotPrivate, match=f"^{path} "):
        open_private(path)


def test_only_regular_files_are_opened_and_no_link_is_followed(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "file").touch()
    (folder / "link").symlink_to("file")
    (folder / "loose").symlink_to("nowhere")
    for name in ("pipe", "link", "loose", "."):
        with pytest.raises(NotPrivate, match="remove it"):
            open_private(folder / name)
    with pytest.raises(FileNotFoundError):
        open_private(folder / "none")


def test_a_sticky_folder_is_a_place_for_private_ones_and_none_itself(folder: Path) -> None:
    (sticky := folder / "tmp").mkdir()
    sticky.chmod(0o1777)
    assert private_folder(sticky / "mine") == sticky / "mine"
    with pytest.raises(NotPrivate, match="can be written by other users"):
        private_folder(sticky)


@as_root
def test_in_a_sticky_folder_anothers_folder_is_refused(folder: Path) -> None:
    (sticky := folder / "tmp").mkdir()
    sticky.chmod(0o1777)
    (sticky / "cache").mkdir()
    own(sticky / "cache")
    with pytest.raises(NotPrivate, match="belongs to another user"):
        private_folder(sticky / "cache" / "engines")


def test_a_link_counts_as_where_it_leads(folder: Path) -> None:
    (folder / "disk").mkdir()
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    (folder / "cache").symlink_to("disk")
    (folder / "bad").symlink_to("open")
    (folder / "dangling").symlink_to("later")
    (folder / "loop").symlink_to("loop")
    assert private_folder(folder / "cache" / "x") == folder / "disk" / "x"
    assert private_folder(folder / "dangling") == folder / "later"
    for name in ("bad", "loop"):
        with pytest.raises(NotPrivate):
            private_folder(folder / name / "x" if name == "bad" else folder / name)


def test_a_group_of_ones_own_may_write(folder: Path, monkeypatch) -> None:
    (path := folder / "cache").mkdir()
    path.chmod(0o775)
    monkeypatch.setattr(storage.private.pwd, "getpwuid", lambda number: SimpleNamespace(pw_name="ann"))
    for name, members, private in (
        ("ann", [], True),
        ("ann", ["ann"], True),
        ("ann", ["bob"], False),
        ("lab", [], False),
    ):
        group = SimpleNamespace(gr_name=name, gr_mem=members)
        monkeypatch.setattr(storage.private.grp, "getgrgid", lambda number, group=group: group)
        if private:
            assert private_folder(path) == path
        else:
            with pytest.raises(NotPrivate, match=f"chmod go-w {path}$"):
                private_folder(path)

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(storage.private.pwd, "getpwuid", unknown)  # as in many containers
    with pytest.raises(NotPrivate):
        private_folder(path)


def test_a_seal_is_this_users_and_this_contents(keys: Path, monkeypatch, tmp_path: Path) -> None:
    first = seal(b"content")
    assert seal(b"content") == first != seal(b"contents")
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    keys.unlink()
    assert seal(b"content") != first
    keys.write_bytes(b"cut")  # by a full disk
    assert seal(b"content") == seal(b"content")
    assert len(keys.read_bytes()) == 32
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    monkeypatch.delenv("XDG_STATE_HOME")
    with pytest.raises(NotPrivate, match="set XDG_STATE_HOME"):
        state_folder()


def test_a_key_that_others_can_write_makes_no_seals(keys: Path) -> None:
    seal(b"")
    keys.chmod(0o666)
    with pytest.raises(NotPrivate, match=f"{keys} can be written by other users"):
        seal(b"")


def test_many_at_once_make_one_key(keys: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(seal, [b"content"] * 64))) == 1


def test_sealed_files_are_read_whole_or_not_at_all(keys: Path, folder: Path) -> None:
    path = folder / "cache" / "timings"
    assert read_sealed(path) == b""
    write_sealed(path, b"content")
    assert read_sealed(path) == b"content"
    whole = path.read_bytes()
    for wrong in (b"", whole[:-1], whole + b"x", b"content", bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(wrong)
        assert read_sealed(path) == b""
    write_sealed(path, b"again")
    assert read_sealed(path) == b"again"
    assert [file.name for file in path.parent.iterdir()] == ["timings"]


def test_a_failed_write_leaves_nothing(keys: Path, folder: Path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    seal(b"")
    monkeypatch.setattr(storage.private, "seal", full)
    with pytest.raises(OSError, match="No space left"):
        write_sealed(folder / "cache" / "timings", b"content")
    assert list((folder / "cache").iterdir()) == []
