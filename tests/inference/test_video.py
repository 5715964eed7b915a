"""Clips that the test draws, read, detected and written."""

import json
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from refinedet_tf.cli import detect as command
from refinedet_tf.errors import DataError, RefineDetError
from refinedet_tf.inference import video
from refinedet_tf.inference.detector import BATCH_SIZE
from refinedet_tf.inference.files import Selection
from refinedet_tf.inference.video import detect_video, is_video
from tests.conftest import PROJECT
from tests.inference.fake_detector import fake_detector

av = pytest.importorskip("av")

FRAMES, RATE = 3 * BATCH_SIZE + 3, 10


def draw_clip(path, height=96, width=128, options=None):
    """A clip that gets brighter from frame to frame, brighter still on its left; nearly lossless."""
    frames = np.full((FRAMES, height, width, 3), 40, np.uint8)
    frames += 4 * np.arange(FRAMES, dtype=np.uint8)[:, None, None, None]
    frames[:, :, : width // 2] += 50
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return frames


def read_clip(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), [frame.time for frame in frames]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return path, draw_clip(path)


def test_every_frame_is_detected_drawn_and_written(clip, tmp_path):
    path, frames = clip
    batches = []
    summary = detect_video(fake_detector(batches.append), path, tmp_path, selection=Selection(0.6))
    assert len(batches) == 4, "frames share batches"
    assert (summary.frames, summary.objects) == (FRAMES, 2 * FRAMES)
    entries = lines(summary.detections)
    assert [entry["frame"] for entry in entries] == list(range(FRAMES))
    np.testing.assert_allclose([entry["time"] for entry in entries], np.arange(FRAMES) / RATE, atol=1e-3)

    pictures, times = read_clip(summary.video)
    np.testing.assert_allclose(times, np.arange(FRAMES) / RATE, atol=1e-3)
    assert pictures.shape == frames.shape
    for entry, picture, pixels in zip(entries, pictures.astype(int), frames, strict=True):
        [found] = fake_detector().detect([pixels], 0.6)
        boxes = found.boxes * (128, 96, 128, 96)
        # Compression may change the pixel that the boxes depend on by a few levels, each a thousandth of the image.
        np.testing.assert_allclose([found["box"] for found in entry["detections"]], boxes, atol=1)
        assert [found["score"] for found in entry["detections"]] == [0.9, 0.7]
        assert np.abs(picture - found.draw(pixels)).mean() < np.abs(picture - pixels).mean() / 2


def test_odd_sizes_and_sub_second_rates_are_kept(tmp_path):
    draw_clip(tmp_path / "clip.mov", height=96, width=128)
    writer = video._VideoWriter(tmp_path / "odd.mp4", video.Fraction(1, 3))
    for second in (0, 3, 6):
        writer.add(np.full((75, 101, 3), 128, np.uint8), second)
    writer.add(np.full((30, 40, 3), 128, np.uint8), 6.5)
    writer.close()
    pictures, times = read_clip(tmp_path / "odd.mp4")
    assert pictures.shape == (4, 76, 102, 3) and times == [0, 3, 6, 6.5]
    assert np.abs(pictures.astype(int) - 128).max() < 5


def test_phone_videos_are_turned_upright(tmp_path):
    frames = draw_clip(tmp_path / "flat.mp4")
    content = (tmp_path / "flat.mp4").read_bytes()
    one, minus_one, end = b"\x00\x01\x00\x00", b"\xff\xff\x00\x00", b"\x40\x00\x00\x00"
    zero = bytes(4)
    upright = one + 3 * zero + one + 3 * zero + end
    clockwise = zero + one + zero + minus_one + 4 * zero + end
    track = content.index(b"tkhd")
    content = content[:track] + content[track:].replace(upright, clockwise, 1)
    (tmp_path / "phone.mp4").write_bytes(content)
    summary = detect_video(fake_detector(), tmp_path / "phone.mp4", tmp_path / "out", labels=False)
    pictures, _ = read_clip(summary.video)
    expected = np.rot90(frames[0], -1)
    assert pictures[0].shape == expected.shape == (128, 96, 3)
    inside = np.s_[100:120, 60:90]  # no line is drawn there
    assert np.abs(pictures[0].astype(int) - expected)[inside].mean() < 8
    assert np.abs(pictures[0].astype(int) - np.rot90(frames[0], 1))[inside].mean() > 30


def test_what_is_no_video_is_one_line(clip, tmp_path):
    path, _ = clip
    (tmp_path / "text.mp4").write_text("no video " * 100)
    for source, message in (
        (tmp_path / "text.mp4", r"text\.mp4 does not open: Invalid data"),
        (tmp_path / "nothing.mp4", r"nothing\.mp4 does not open: No such file"),
        ("rtsp://127.0.0.1:9/live", "rtsp://127.0.0.1:9/live does not open: Connection refused"),
        ("77", "Camera 77 does not open|Cameras cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            detect_video(fake_detector(), source, tmp_path / "out")
    with pytest.raises(DataError, match=r"would overwrite .*clip\.mp4"):
        detect_video(fake_detector(), path, path.parent)
    assert [source for source in ("a.jpg", "a.MP4", "0", "rtsp://h/p", "photos") if is_video(source)] == [
        "a.MP4", "0", "rtsp://h/p",
    ]  # fmt: skip


def test_a_clip_that_breaks_off_keeps_what_was_read(tmp_path, monkeypatch):
    draw_clip(tmp_path / "clip.mp4")
    decode, closed = video._decode, []

    def broken(*arguments):
        for number, *rest in decode(*arguments):
            if number == BATCH_SIZE + 2:
                raise DataError("clip.mp4 breaks off after frame 9: Invalid data.")
            yield number, *rest
        closed.append(True)

    monkeypatch.setattr(video, "_decode", broken)
    with pytest.raises(DataError, match="breaks off"):
        detect_video(fake_detector(), tmp_path / "clip.mp4", tmp_path / "out")
    assert len(lines(tmp_path / "out/clip.jsonl")) == len(read_clip(tmp_path / "out/clip.mp4")[0]) == BATCH_SIZE + 2


def test_a_live_source_is_watched_until_it_is_interrupted(clip, tmp_path, monkeypatch):
    path, _ = clip
    opened = video._open
    monkeypatch.setattr(video, "_open", lambda source: opened(str(path)))
    before = threading.active_count()

    def interrupt(batch):
        if batch == 4:
            raise KeyboardInterrupt

    summary = detect_video(fake_detector(interrupt), "rtsp://camera/live", tmp_path)
    assert summary.frames == 3 and summary.video.name == "stream.mp4"
    assert len(lines(summary.detections)) == len(read_clip(summary.video)[0]) == 3
    assert threading.active_count() == before
    with pytest.raises(KeyboardInterrupt):
        detect_video(fake_detector(interrupt), path, tmp_path)


KILLED = """
import os, signal, sys
from refinedet_tf.inference.video import detect_video
from tests.inference.fake_detector import fake_detector
kill = lambda batch: os.kill(os.getpid(), signal.SIGKILL) if batch == 4 else None
detect_video(fake_detector(kill), sys.argv[1], sys.argv[2])
"""


def test_a_kill_leaves_files_that_can_be_read(clip, tmp_path):
    command = [sys.executable, "-c", KILLED, clip[0], tmp_path]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.DEVNULL)
    assert result.returncode == -signal.SIGKILL
    assert len(lines(tmp_path / "clip.jsonl")) == 3 * BATCH_SIZE
    # A key frame comes every 20 frames, and 24 had been written.
    assert len(read_clip(tmp_path / "clip.mp4")[0]) >= 20


def test_the_command_takes_videos(clip, tmp_path, monkeypatch, capsys):
    given = {
        "model": "m.keras", "input": [str(clip[0])], "output_dir": str(tmp_path), "score_threshold": 0.6,
        "only": ["person"], "max_boxes": 1, "labels": False,
    }  # fmt: skip
    monkeypatch.setattr(command, "FLAGS", SimpleNamespace(**given))
    monkeypatch.setattr("refinedet_tf.inference.detector.Detector.load", lambda path: fake_detector())
    command.main()
    assert f"{FRAMES} objects in {FRAMES} frames" in capsys.readouterr().out
    for entry in lines(tmp_path / "clip.jsonl"):
        assert [(found["class"], found["score"]) for found in entry["detections"]] == [("person", 0.9)]


def test_without_pyav_the_extra_is_named(clip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RefineDetError, match=r"pip install 'refinedet-tf\[video\]'"):
        detect_video(fake_detector(), clip[0], tmp_path)
