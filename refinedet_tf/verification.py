"""Compares exported forms of a model with the model itself, on the same images, in numbers.

In float32, detections must be the same up to rounding. Forms of lower precision may move a detection a little and may
gain or lose one near the threshold: for these, the confident detections, their overlap and, with labeled images, the
average precision must be close to the model's.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.data.shapes import draw_image
from refinedet_tf.errors import ExportError
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.inference.detector import Detections, Detector
from refinedet_tf.inference.saved_model_runner import SIGNATURES, SavedModel, is_exact
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.model import RefineDet
from refinedet_tf.ops.boxes import pairwise_iou

SCORE_THRESHOLD = 0.05
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-3
# Scores that are equal up to rounding may change places in the suppression, and an undertrained model has many of
# them: this share of the detections may differ in float32.
TIED_SHARE = 0.01
# For forms of lower precision: the share of the model's detections above CLEAR_SCORE that must be found, their mean
# IoU, and the loss of AP at IoU 0.5.
CLEAR_SCORE = 0.5
FOUND_TOLERANCE = 0.9
IOU_TOLERANCE = 0.9
AP_TOLERANCE = 0.015
COMPARED_IMAGES = 8
TIMED_RUNS = 5


@dataclass(frozen=True)
class Agreement:
    """How closely one form of a model agrees with the model.

    Attributes:
        form: the file, and the signature if it is a SavedModel.
        exact: whether float32's tolerances apply.
        expected: number of the model's detections above `SCORE_THRESHOLD`.
        unmatched: number of detections of either side without a counterpart (same class, IoU at least 0.5) on the
            other; those whose score is within the tolerance of the threshold do not count.
        clear_found: share of the model's detections above `CLEAR_SCORE` that have a counterpart.
        score_difference: the largest between counterparts.
        box_difference: the largest between corners of counterparts, relative to the image.
        mean_iou: mean IoU of counterparts.
        ap: mean AP (area) at IoU 0.5 on the labeled images, if there are any.
        ap_loss: the model's AP minus this form's.
        megabytes: size of the file or folder, or of the model's weights, 10^6 bytes.
        milliseconds: median time for one image, resizing included.
        peak_mib: how far the memory of the process rose from opening the file to the last image, where the system
            tells. Memory that an earlier form has freed is used again and not counted, and the first signature of a
            SavedModel opens it for all.
        passed: whether everything is within the tolerances.
    """

    form: str
    exact: bool
    expected: int
    unmatched: int
    clear_found: float
    score_difference: float
    box_difference: float
    mean_iou: float
    ap: float | None
    ap_loss: float | None
    megabytes: float
    milliseconds: float
    peak_mib: float | None
    passed: bool


@dataclass(frozen=True)
class _Form:
    """One way to run an export.

    Attributes:
        name: as in `Agreement.form`.
        exact: whether float32's tolerances apply.
        rounds: whether its input rounds pixels.
        load: opens it.
    """

    name: str
    exact: bool
    rounds: bool
    load: Callable[[], Detector]


@dataclass(frozen=True)
class _Difference:
    """Two sides' detections in the same images, compared; the fields are those of `Agreement`.

    Attributes:
        apart: number of counterparts whose score or corners differ by more than float32's tolerances.
    """

    expected: int
    unmatched: int
    clear_found: float
    score_difference: float
    box_difference: float
    mean_iou: float
    apart: int


def verify(
    model: RefineDet,
    paths: Sequence[str | os.PathLike],
    images: Sequence[np.ndarray] | None = None,
    examples: Sequence[Example] = (),
) -> list[Agreement]:
    """Compares exported forms of a model with it.

    Args:
        model: the model that was exported.
        paths: SavedModel folders, .tflite and .onnx files.
        images: uint8 RGB `[h, w, 3]` of any sizes; by default the first labeled images, or without any drawn ones.
        examples: labeled images for the average precision.

    Returns:
        The figures of the model itself, then those of each form; a SavedModel has four.

    Raises:
        ExportError: a path is no export of this project, or has other classes than the model.
    """
    images = _compared_images(examples) if images is None else images

    def measure_ap(detector: Detector) -> float | None:
        return _average_precision(detector, examples)

    classes, live = list(model.config.classes), Detector.from_model(model)
    ap = measure_ap(live)
    detections = {False: [live.detect(image) for image in images]}
    itself = _Form("model", exact=True, rounds=False, load=lambda: live)
    results = [_compare(itself, classes, 4 * model.count_params(), images, detections[False], ap, lambda _: ap)]
    for path in map(Path, paths):
        for form in _forms(path):
            if form.rounds and True not in detections:
                rounding = _rounding_detector(model)  # so that both sides see the same pixels
                detections[True] = [rounding.detect(image) for image in images]
            results.append(_compare(form, classes, _bytes(path), images, detections[form.rounds], ap, measure_ap))
    return results


def require_passed(results: Sequence[Agreement]) -> None:
    """Raises an error if any form differs from the model.

    Raises:
        ExportError: a form is beyond its tolerances; the message names it.
    """
    failed = [result.form for result in results if not result.passed]
    if failed:
        raise ExportError(f"These do not detect what the model detects: {', '.join(failed)}.")


def table(results: Sequence[Agreement]) -> str:
    """Formats the results for people."""
    lines = [f"{'':36}{'same':>11}{'score':>9}{'box':>9}{'IoU':>7}{'AP50':>7}{'MB':>8}{'ms':>8}{'MiB':>6}"]
    for result in results:
        same = f"{result.expected - result.unmatched}/{result.expected}"
        ap = "" if result.ap is None else f"{result.ap:.3f}"
        peak = "" if result.peak_mib is None else f"{result.peak_mib:.0f}"
        lines.append(
            f"{result.form[-36:]:36}{same:>11}{result.score_difference:9.1e}{result.box_difference:9.1e}"
            f"{result.mean_iou:7.3f}{ap:>7}{result.megabytes:8.2f}{result.milliseconds:8.1f}{peak:>6}"
            f"{'' if result.passed else '  beyond the tolerance'}"
        )
    return "\n".join(lines)


def write_json(results: Sequence[Agreement], path: str | os.PathLike) -> None:
    """Writes the results for programs, a list of `Agreement`s."""
    Path(path).write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")


def match(expected: Detections, found: Detections) -> list[tuple[int, int, float]]:
    """Pairs detections of one class, one-to-one, best overlap first, down to an IoU of 0.5.

    Returns:
        (row of `expected`, row of `found`, IoU) for each pair.
    """
    overlap = pairwise_iou(expected.boxes, found.boxes).numpy()
    overlap *= expected.classes[:, np.newaxis] == found.classes
    pairs = []
    while overlap.size and overlap.max() >= 0.5:
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        pairs.append((int(row), int(column), float(overlap[row, column])))
        overlap[row], overlap[:, column] = 0, 0
    return pairs


def _compared_images(examples: Sequence[Example]) -> list[np.ndarray]:
    """The first labeled images, or without any some drawn ones, of two sizes."""
    if examples:
        return [batch[0].numpy() for batch in image_pipeline(examples[:COMPARED_IMAGES])]
    rng = np.random.default_rng(0)
    return [draw_image(rng, size)[0] for size in [(240, 320), (320, 240)] * (COMPARED_IMAGES // 2)]


def _forms(path: Path) -> Iterator[_Form]:
    """All ways to run an export."""
    if path.is_dir():
        exact, opened = is_exact(path), functools.cache(lambda: SavedModel(path))
        for signature in SIGNATURES:

            def load(signature: str = signature) -> Detector:
                return Detector.from_export(opened().with_signature(signature))

            yield _Form(f"{path.name} {signature}", exact, rounds=False, load=load)
    elif path.suffix == ".onnx":
        yield _Form(path.name, exact=True, rounds=False, load=lambda: Detector.load(path))
    else:
        settings = TFLiteModel(path).metadata.settings
        exact, rounds = settings["quantize"] == "none", settings["input"]["type"] == "uint8"
        yield _Form(path.name, exact, rounds, lambda: Detector.load(path))


def _compare(
    form: _Form,
    classes: list[str],
    size: int,
    images: Sequence[np.ndarray],
    expected: Sequence[Detections],
    model_ap: float | None,
    measure_ap: Callable[[Detector], float | None],
) -> Agreement:
    before = _reset_peak_memory()
    detector = form.load()
    if detector.classes != classes:
        raise ExportError(f"{form.name} has the classes {detector.classes}, the model has {classes}.")
    found = [detector.detect(image) for image in images]
    milliseconds = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        detector.detect(images[0])
        milliseconds.append((time.perf_counter() - start) * 1e3)
    peak = None if before is None else _memory("VmHWM") - before
    ap = measure_ap(detector)
    ap_loss = None if ap is None else model_ap - ap

    difference = _difference(expected, found)
    if form.exact:
        passed = difference.unmatched + difference.apart <= TIED_SHARE * difference.expected
    else:
        is_found = difference.clear_found >= FOUND_TOLERANCE and difference.mean_iou >= IOU_TOLERANCE
        passed = is_found and (ap_loss or 0.0) <= AP_TOLERANCE
    figures = asdict(difference)
    del figures["apart"]
    return Agreement(
        form=form.name,
        exact=form.exact,
        ap=ap,
        ap_loss=ap_loss,
        megabytes=size / 1e6,
        milliseconds=float(np.median(milliseconds)),
        peak_mib=peak,
        passed=bool(passed),
        **figures,
    )


def _difference(expected: Sequence[Detections], found: Sequence[Detections]) -> _Difference:
    unmatched = apart = clear = clear_found = count = 0
    scores, corners, overlaps = [0.0], [0.0], []
    for ours, theirs in zip(expected, found, strict=True):
        ours, theirs = _above(ours), _above(theirs)
        pairs = match(ours, theirs)
        rows, columns = [row for row, _, _ in pairs], [column for _, column, _ in pairs]
        for detections, matched in ((ours, rows), (theirs, columns)):
            alone = np.delete(detections.scores, matched)
            unmatched += int((alone > SCORE_THRESHOLD + SCORE_TOLERANCE).sum())
        count += int((ours.scores > SCORE_THRESHOLD).sum())
        clear += int((ours.scores > CLEAR_SCORE).sum())
        clear_found += int((ours.scores[rows] > CLEAR_SCORE).sum())
        score_errors = np.abs(ours.scores[rows] - theirs.scores[columns])
        corner_errors = np.abs(ours.boxes[rows] - theirs.boxes[columns])
        apart += int(((score_errors > SCORE_TOLERANCE) | (corner_errors > BOX_TOLERANCE).any(axis=1)).sum())
        scores.extend(score_errors)
        corners.extend(corner_errors.ravel())
        overlaps.extend(overlap for _, _, overlap in pairs)
    return _Difference(
        expected=count,
        unmatched=unmatched,
        clear_found=clear_found / clear if clear else 1.0,
        score_difference=float(max(scores)),
        box_difference=float(max(corners)),
        mean_iou=float(np.mean(overlaps)) if overlaps else 1.0,
        apart=apart,
    )


def _average_precision(detector: Detector, examples: Sequence[Example]) -> float | None:
    """Mean AP (area) at IoU 0.5."""
    if not examples:
        return None
    return evaluate(detector, ExampleSet(list(examples), detector.classes, [])).ap_area


def _rounding_detector(model: RefineDet) -> Detector:
    """`Detector.from_model` on rounded pixels, which is what a uint8 input sees."""

    @tf.function(reduce_retracing=True, autograph=False)
    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        found = model.detect(tf.round(model.resizing.resize(images)))
        return {**found, "boxes": model.resizing.boxes_to_image(found["boxes"], tf.shape(images)[1:3])}

    return Detector(run, list(model.config.classes))


def _above(detections: Detections) -> Detections:
    return detections[detections.scores > SCORE_THRESHOLD - SCORE_TOLERANCE]


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _reset_peak_memory() -> float | None:
    """Sets the peak memory of the process to what it uses now and returns that, MiB; None where that is impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    except OSError:
        return None


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))
