"""What SOURCE may be, and that no password is shown."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_bench.cli import run_command
from tdn_bench.errors import UserError, without_credentials
from tdn_bench.watch import main
from tdn_bench.watching.source import find_source

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://admin:s3cr3t@10.0.0.2:554/h264/ch1", "rtsp://***@10.0.0.2:554/h264/ch1"),
        ("rtsp://10.0.0.2/stream", "rtsp://10.0.0.2/stream"),
        ("http://host/live.m3u8?token=s3cr3t", "http://host/live.m3u8?…"),
        ("http://host/live#s3cr3t", "http://host/live?…"),
        ("RTSP://a:s3cr3t@h/x", "RTSP://***@h/x"),
        ("rtsp://a:b@s3cr3t@h/x", "rtsp://***@h/x"),
        ("rtsp://a:s3/cr3t@h/x", "rtsp://***@h/x"),
        ("rtsp://a:s3cr3t?@h/x", "rtsp://***@h/x"),
        ("clip with spaces.mp4", "clip with spaces.mp4"),
        ("http://h/\x1b[2J", "http://h/\\x1b[2J"),
    ],
)
def test_urls_are_shown_without_credentials(url, shown):
    assert without_credentials(url) == shown


@given(
    st.text(st.characters(codec="ascii", exclude_characters="@?#"), max_size=9), st.sampled_from(["", "?", "#", "/"])
)
def test_no_password_is_shown_however_it_is_written(user, odd):
    assert SECRET not in without_credentials(f"rtsp://{user}:{odd}{SECRET}@host/path")
    assert SECRET not in without_credentials(f"http://host/path?{user}={SECRET}")


def test_no_log_holds_a_password(tmp_path, monkeypatch):
    url, log = f"rtsp://user:{SECRET}@127.0.0.1/x?token={SECRET}", tmp_path / "log"
    monkeypatch.setattr("sys.argv", ["tdn-bench", "watch", url])
    assert run_command(main, [url, "--checkpoint", str(tmp_path / "none"), "--log-file", str(log), "-v"]) == 2
    said = log.read_text(encoding="utf-8")
    assert "flags: source='rtsp://***@127.0.0.1/x?…'" in said
    assert "command: tdn-bench watch" in said
    assert SECRET not in said


def test_files_cameras_and_urls(tmp_path, monkeypatch):
    video = tmp_path / "a 'clip' <b>.mp4"
    video.write_bytes(b"x")
    assert find_source(str(video)).kind == "file"
    assert find_source("udp://127.0.0.1:5000").kind == "url"
    monkeypatch.chdir(tmp_path)
    Path("0").write_bytes(b"x")
    assert find_source("0").kind == "file"  # it is there
    assert find_source(os.devnull).kind == "camera"  # a character device; /dev/video0 is one


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("987", "there is no camera /dev/video987"),
        ("/dev/video987", "there is no camera /dev/video987"),
        ("nothing.mp4", "no such file"),
        ("file:///etc/passwd", "a URL begins with http"),
        ("concat://a|b", "a URL begins with"),
        ("pipe://0", "a URL begins with"),
        (".", "is a folder"),
        ("", "is a folder"),
        ("bad\x00name", "no file can have this name"),
    ],
)
def test_what_cannot_be_watched_is_refused_in_one_line(text, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as e:
        find_source(text)
    assert why in str(e.value)
    assert "\n" not in str(e.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe or a device"):
        find_source(str(tmp_path / "pipe"))
