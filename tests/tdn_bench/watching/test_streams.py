"""Streams that FFmpeg serves on loopback: which frames a label belongs to; stalls, size changes, ends."""

import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
from support.streams import Numbers, RtspServer, Server, free_port, make_watch, served, slow_down
from support.videos import numbered_frames, write_video

from pipelines.sampling import center_frame_indices
from tdn_bench.errors import UserError
from tdn_bench.watching.live import Watch

FAST = ("-readrate", "5")  # times the clip's own 12 frames a second
LENGTH = 24  # frames of a window: on the grid with T = 4, L = 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames with their numbers; B-frames, a key frame every second."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.ts", numbered_frames(100, 128, 128), "libx264")


def play(clip: Path, kind: str = "tcp", *flags: str) -> Server:
    return served(clip, kind, *flags or FAST)


def kinds(watch: Watch) -> list[str]:
    return [kind for _, kind, _ in watch.happened]


def check_frames(numbers: Numbers, joined: int = 0) -> None:
    """Every window samples what an evaluation samples of its frames, and got just those."""
    assert numbers.seen
    for asked, seen in zip(numbers.asked, numbers.seen, strict=True):
        first = asked[0, 0] - center_frame_indices(LENGTH, 4)[0, 0]
        assert (asked - first == center_frame_indices(LENGTH, 4)).all()
        assert (seen == asked + joined).all()


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_label_belongs_to_the_frames_it_names(clip, kind):
    with play(clip, kind) as server:
        watch, numbers = make_watch(server.url), Numbers()
        watch.start(20)
        labels = [label for label in watch.labels(numbers) if label is not None]
        watch.close()
    check_frames(numbers)
    assert watch.ring.count == 100
    assert [label.frames[1] for label in labels] == [frames[0, 0] - 2 + LENGTH - 1 for frames in numbers.asked]
    assert labels[-1].frames == (75, 98)  # the last that is due: 23 + 15 · 5
    assert kinds(watch)[-1] == "end"
    assert watch.reader.damaged == watch.reader.dropped == watch.tally.stalls == 0


def test_a_camera_that_asks_for_a_password(clip):
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg on this machine: it makes the stream of this test")
    camera = RtspServer(clip, "admin", "s3cr3t")
    try:
        watch, numbers = make_watch(f"rtsp://admin:s3cr3t@{camera.address}"), Numbers()
        watch.start(20)
        for _ in watch.labels(numbers, seconds=10):
            pass
        watch.close()
    finally:
        camera.close()
    check_frames(numbers)
    assert camera.refused == 1  # it did ask
    assert watch.reader.source.shown == f"rtsp://***@{camera.address}"
    assert watch.ring.count >= 98
    assert kinds(watch)[-1] == "end"


def test_udp_may_be_joined_in_the_middle_and_goes_silent(clip):
    with play(clip, "udp") as server:
        time.sleep(1)
        watch, numbers = make_watch(server.url, stall_s=0.5), Numbers()
        watch.start(20)
        for label in watch.labels(numbers, seconds=10):
            if label is None and "stall" in kinds(watch):
                break
        watch.close()
    joined = int(numbers.seen[0][0, 0] - numbers.asked[0][0, 0])
    assert joined % 12 == 0  # at a key frame
    check_frames(numbers, joined)
    assert "no picture for" in next(text for _, kind, text in watch.happened if kind == "stall")


def test_a_stalled_stream_is_waited_for(clip):
    with play(clip) as server:
        watch, numbers = make_watch(server.url, stall_s=0.5), Numbers()
        watch.start(20)
        for label in watch.labels(numbers):
            if label is not None and len(numbers.seen) == 5:
                server.pause()
            if watch.tally.stalls and "resumed" not in kinds(watch):
                server.resume()
        watch.close()
    check_frames(numbers)
    assert [kind for kind in kinds(watch) if kind in ("stall", "resumed", "end")] == ["stall", "resumed", "end"]
    assert watch.ring.count == 100


def test_a_lost_stream_is_opened_again_and_no_window_spans_the_loss(clip):
    with play(clip) as server:
        watch, numbers = make_watch(server.url, stall_s=0.4, read_s=0.8), Numbers()
        watch.start(20)
        paused = restarted = False
        for label in watch.labels(numbers):
            if label is not None and len(numbers.seen) == 5 and not paused:
                server.pause()
                paused = True
            if "lost" in kinds(watch) and not restarted:
                server.kill()
                server.start()
                restarted = True
        watch.close()
    assert [kind for kind in kinds(watch) if kind in ("stall", "connected", "resumed", "end")][-1] == "end"
    assert "connected" in kinds(watch)
    second = next(i for i, seen in enumerate(numbers.seen) if i and seen[0, 0] < numbers.seen[i - 1][0, 0])
    for asked, seen in zip(numbers.asked, numbers.seen, strict=True):
        assert len(set((asked - seen).ravel().tolist())) == 1  # frames in a row, of one connection
    assert numbers.seen[second][0, 0] == center_frame_indices(LENGTH, 4)[0, 0]  # from its first frame on


def test_a_size_change_is_said_and_begins_the_window_anew(clip, tmp_path):
    small = write_video(tmp_path / "small.ts", numbered_frames(60, 120, 96, first=100), "libx264")
    both = tmp_path / "both.ts"
    both.write_bytes(clip.read_bytes() + small.read_bytes())
    with play(both) as server:
        watch, numbers = make_watch(server.url), Numbers()
        watch.start(20)
        labels = [label for label in watch.labels(numbers) if label is not None]
        watch.close()
    assert "120×96 now, 128×128 before" in dict(e[1:] for e in watch.happened)["size"]
    assert watch.tally.size_changes == 1
    assert any(label.frames[1] < 100 for label in labels)
    assert any(label.frames[0] >= 100 for label in labels)
    assert not any(label.frames[0] < 100 <= label.frames[1] for label in labels)
    check_frames(numbers)


def test_damaged_packets_are_survived_and_counted(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    for packet in range(len(data) // 188):
        if packet in range(60, 200, 40):  # payload, not the header that says whose packet it is
            data[packet * 188 + 60 : packet * 188 + 150] = bytes(90)
    broken = tmp_path / "broken.ts"
    broken.write_bytes(data)
    with play(broken) as server:
        watch, numbers = make_watch(server.url), Numbers()
        watch.start(20)
        labels = [label for label in watch.labels(numbers) if label is not None]
        watch.close()
    assert kinds(watch)[-1] == "end"
    assert watch.reader.damaged > 0
    assert kinds(watch).count("damaged") == 1
    assert watch.ring.count <= 100 - watch.reader.damaged // 2
    assert any(label.doubtful_frames for label in labels)
    for label, seen in zip(labels, numbers.seen, strict=True):
        if not label.doubtful_frames:  # nothing is missing or wrong
            assert (seen - seen[0, 0] == center_frame_indices(LENGTH, 4) - center_frame_indices(LENGTH, 4)[0, 0]).all()
    assert watch.tally.windows_doubtful == sum(label.doubtful_frames > 0 for label in labels)


def test_nobody_there_nobody_answers_and_no_video(tmp_path):
    watch = make_watch(f"tcp://127.0.0.1:{free_port()}", connect_s=0.5)
    with pytest.raises(UserError, match="cannot be watched: connection refused"):
        watch.start(5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        watch = make_watch(f"tcp://user:secret@127.0.0.1:{silent.getsockname()[1]}", connect_s=0.5)
        with pytest.raises(UserError, match="no answer in time") as e:
            watch.start(5)
        assert "secret" not in str(e.value)
        watch.close()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.sendall(b"no video at all, only text\n" * 1000)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="cannot be watched: "):
            make_watch(f"tcp://127.0.0.1:{server.getsockname()[1]}", connect_s=5).start(10)
        thread.join()


def test_a_slow_engine_drops_and_is_never_late(clip):
    """Frames come at 60 a second, windows are due at 12; the engine takes a fifth of a second."""
    with play(clip) as server:
        watch, numbers = make_watch(server.url), Numbers(engine_s=0.2)
        watch.start(20)
        labels = [label for label in watch.labels(numbers) if label is not None]
        watch.close()
    check_frames(numbers)
    assert watch.ring.count == 100
    due = [label.frames[1] for label in labels]
    assert watch.tally.windows + watch.tally.windows_skipped == 1 + (due[-1] - (LENGTH - 1)) // 5
    assert watch.tally.windows_skipped >= 3
    assert len(watch.ring._pictures) == LENGTH + 5  # all that waits
    late = watch.tally.latency_ms
    assert late[-1] < 2 * late[0] + 1000  # of a queue, each would wait longer than the one before


@pytest.mark.slow
def test_a_decoder_that_cannot_keep_up_with_a_stream_goes_on_at_a_key_frame(clip):
    """Frames come at 12 a second, each takes almost twice as long: what piles up is thrown away, not shown late."""
    with play(clip, "tcp", "-readrate", "1") as server:
        watch, numbers = make_watch(server.url, 12), Numbers()
        slow_down(watch, 0.16)
        watch.start(20)
        for _ in watch.labels(numbers):
            pass
        watch.close()
    assert "behind" in kinds(watch)
    assert "gap" not in kinds(watch)  # the same thing is said once
    assert watch.reader.dropped > 0
    assert watch.reader.dropped + watch.ring.count == 100
    for asked, seen in zip(numbers.asked, numbers.seen, strict=True):
        assert len(set((seen - asked).ravel().tolist())) == 1  # no window spans what was thrown away
    assert (numbers.seen[-1] - numbers.asked[-1]).max() > 0  # and there were labels behind it
