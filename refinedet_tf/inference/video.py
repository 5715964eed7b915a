"""Detecting objects in videos, cameras and streams: a video with boxes, and the detections of each frame.

PyAV reads and writes the videos; it is the extra `video`.
"""

import contextlib
import json
import os
import sys
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from refinedet_tf.errors import DataError, RefineDetError
from refinedet_tf.inference.background import batched, in_background
from refinedet_tf.inference.detector import BATCH_SIZE, Detector
from refinedet_tf.inference.files import Selection
from refinedet_tf.inference.results import GrowingFile, describe

if TYPE_CHECKING:
    import av

EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv")
# FFmpeg's name of camera N and input format on each system.
CAMERAS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}
OPEN_TIMEOUT, READ_TIMEOUT = 10.0, 30.0  # seconds, for streams
DEFAULT_RATE = 25
TICKS = 90_000  # a second, in the written video
SECONDS_BETWEEN_KEYFRAMES = 2


@dataclass(frozen=True)
class VideoSummary:
    """Counts and files of a finished `detect_video` run.

    Attributes:
        frames: number of frames.
        objects: number of objects in them.
        video: the written video.
        detections: the written JSON lines.
    """

    frames: int
    objects: int
    video: Path
    detections: Path


def is_video(source: str) -> bool:
    """Whether an input is a video file (by its extension), a camera number or the address of a stream."""
    return is_live(source) or source.lower().endswith(EXTENSIONS)


def is_live(source: str) -> bool:
    """Whether an input is a camera number or the address of a stream."""
    return source.isdigit() or "://" in source


def detect_video(
    detector: Detector,
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    selection: Selection | None = None,
    labels: bool = True,
) -> VideoSummary:
    """Detects objects in each frame of a video; decoding runs beside detecting.

    A camera or stream is watched until it ends or Ctrl-C is pressed. Frames that arrive faster than the model detects
    are left out. Both files can be read up to where they were written, however the program ends, the video up to its
    last two seconds. Sound is not copied.

    Args:
        detector: the model.
        source: a video file, the number of a camera such as "0", or an address such as rtsp://host/path.
        output_dir: the folder for NAME.mp4, H.264 with boxes, and NAME.jsonl, one line for each frame: `frame`, counted
            from 0, `time` in seconds, and `detections` as in `detections.json`. NAME is that of the file, cameraN or
            stream.
        selection: which detections are reported.
        labels: whether to write class names and scores in the video.

    Raises:
        RefineDetError: PyAV is not installed.
        ConfigError: `selection` names a class that the model does not have.
        DataError: the source does not open, holds no video, breaks off in the middle (what was read before is written),
            or would be overwritten.
    """
    source = os.fspath(source)
    selection = selection or Selection()
    selection.check(detector.classes)
    video, lines = (Path(output_dir) / f"{_name(source)}{suffix}" for suffix in (".mp4", ".jsonl"))
    if not is_live(source) and video.resolve() == Path(source).resolve():
        raise DataError(f"The result would overwrite {source}; name another folder than {output_dir}.")

    with contextlib.ExitStack() as stack:
        container = stack.enter_context(_open(source))
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE).limit_denominator(1001)
        video.parent.mkdir(parents=True, exist_ok=True)
        writer = stack.enter_context(contextlib.closing(_VideoWriter(video, rate)))
        log = stack.enter_context(contextlib.closing(GrowingFile(lines, "", "")))
        progress = stack.enter_context(tqdm(total=stream.frames or None, unit="frame", disable=None))
        frames = in_background(_decode(container, source, rate), 2 * BATCH_SIZE, drop_oldest=is_live(source))
        stack.enter_context(contextlib.closing(frames))
        if is_live(source):
            stack.enter_context(contextlib.suppress(KeyboardInterrupt))

        count = objects = 0
        # Pictures of a camera are shown as they come; those of a file wait for a whole batch.
        for batch in batched(frames, 1 if is_live(source) else BATCH_SIZE):
            found = detector.detect([pixels for _, _, pixels in batch], selection.score_threshold)
            for (number, time, pixels), detections in zip(batch, map(selection.apply, found), strict=True):
                writer.add(detections.draw(pixels, labels), time)
                height, width = pixels.shape[:2]
                entry = {"frame": number, "time": round(time, 3), "detections": describe(detections, width, height)}
                log.append(json.dumps(entry) + "\n", "")
                count, objects = count + 1, objects + len(detections)
                progress.update()
    if not count:
        raise DataError(f"{source} has no frame that can be decoded.")
    return VideoSummary(count, objects, video, lines)


def _name(source: str) -> str:
    if source.isdigit():
        return f"camera{source}"
    return "stream" if is_live(source) else Path(source).stem


def _open(source: str) -> "av.container.InputContainer":
    av = _import_av()
    try:
        if source.isdigit():
            if sys.platform not in CAMERAS:
                raise DataError(f"Cameras cannot be read on {sys.platform}; give the address of a stream.")
            name, form = CAMERAS[sys.platform]
            container = av.open(name.format(source), format=form)
        else:
            container = av.open(source, timeout=(OPEN_TIMEOUT, READ_TIMEOUT))
    except av.error.FFmpegError as error:
        what = f"Camera {source}" if source.isdigit() else source
        raise DataError(f"{what} does not open: {error.strerror}.") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{source} holds no video.")
    return container


def _decode(
    container: "av.container.InputContainer", source: str, rate: Fraction
) -> Generator[tuple[int, float, np.ndarray], None, None]:
    """Yields the number, the seconds since the first, and the upright RGB pixels of each frame."""
    av = _import_av()
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    start, number = None, -1
    try:
        for number, frame in enumerate(container.decode(stream)):
            time = float(number / rate) if frame.time is None else frame.time
            start = time if start is None else start
            pixels = frame.to_ndarray(format="rgb24")
            yield number, time - start, np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
    except av.error.FFmpegError as error:
        raise DataError(f"{source} breaks off after frame {number}: {error.strerror}.") from error


class _VideoWriter:
    """Writes H.264 in an MP4 file that can be played up to its last key frame at any time."""

    def __init__(self, path: Path, rate: Fraction):
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = _import_av().open(str(path), "w", options=options)
        self._rate = rate
        self._stream = None
        self._ticks = -1

    def add(self, picture: np.ndarray, time: float) -> None:
        """Adds a frame, uint8 RGB `[h, w, 3]`; all are brought to the size of the first, made even."""
        if self._stream is None:
            self._start(*picture.shape[:2])
        stream = self._stream
        frame = _import_av().VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(width=stream.width, height=stream.height, format=stream.pix_fmt)
        self._ticks = max(self._ticks + 1, round(time * TICKS))
        frame.pts, frame.time_base = self._ticks, Fraction(1, TICKS)
        self._container.mux(stream.encode(frame))

    def close(self) -> None:
        """Writes the frames that wait, and closes the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def _start(self, height: int, width: int) -> None:
        # No frame waits for later ones, so that the file holds what came before the last key frame.
        stream = self._container.add_stream("libx264", rate=self._rate, options={"tune": "zerolatency"})
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        stream.codec_context.gop_size = max(1, round(self._rate * SECONDS_BETWEEN_KEYFRAMES))
        self._stream = stream


def _import_av() -> "av":
    try:
        import av
    except ImportError as error:
        raise RefineDetError("Videos need PyAV: pip install 'refinedet-tf[video]'.") from error
    return av
