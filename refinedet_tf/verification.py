"""Is an exported model the model it was made from? The same images through both, in numbers.

In float32 the detections have to be the same up to rounding. Forms of less precision may move a detection a little and
lose or gain one near the threshold: of these the detections that stand out, their overlap and, with labelled images,
the average precision have to be near the model's.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from refinedet_tf.config import as_dict
from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.inference.detector import Detections, Detector, pad_detections
from refinedet_tf.inference.numpy_decoder import decode_detections
from refinedet_tf.inference.tflite_runner import TFLiteModel
from refinedet_tf.model import RefineDet
from refinedet_tf.ops.boxes import pairwise_iou

SCORE_THRESHOLD = 0.05
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-3
# Scores that are equal but for rounding may change places in the suppression, and a model that has hardly been trained
# has many such: this share of the detections may differ in float32.
TIED_SHARE = 0.01
# Of forms with less than float32's precision: the model's detections above CLEAR_SCORE that have to be found, their
# mean overlap, and the loss of AP at IoU 0.5.
CLEAR_SCORE = 0.5
FOUND_TOLERANCE = 0.9
IOU_TOLERANCE = 0.9
AP_TOLERANCE = 0.015
TIMED_RUNS = 5


@dataclass(frozen=True)
class Agreement:
    """How near one form of a model is to the model.

    Attributes:
        form: the file, and of a SavedModel the signature.
        exact: whether float32's tolerances apply.
        expected: the model's detections above `SCORE_THRESHOLD`.
        unmatched: how many of these and of the form's have no counterpart (same class, IoU at least 0.5), besides those
            whose score is within the tolerance of the threshold.
        clear_found: share of the model's detections above `CLEAR_SCORE` that have a counterpart.
        score_difference: the largest between counterparts.
        box_difference: the largest between corners of counterparts, in sides of the image.
        mean_iou: of counterparts.
        ap: mean AP (area) at IoU 0.5 on the labelled images, if there are any.
        ap_loss: how much more the model's is.
        megabytes: size of the file or folder, of the model itself that of its weights, 10^6 bytes.
        milliseconds: median for one image, resizing included.
        peak_mib: how far the process's memory rose from opening the file to the last image, where the system tells.
            Memory that an earlier form left free is used again and not counted.
        passed: whether all that is within the tolerances.
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


def verify(
    model: RefineDet,
    paths: Sequence[str | os.PathLike],
    images: Sequence[np.ndarray],
    examples: Sequence[Example] = (),
) -> list[Agreement]:
    """Compares exported forms of a model with it.

    Args:
        model: what was exported.
        paths: SavedModel folders and .tflite files.
        images: uint8 RGB `[h, w, 3]` of any sizes.
        examples: labelled images for the average precision.

    Returns:
        The figures of the model itself, then those of each form, a SavedModel having four.

    Raises:
        WeightFileError, ExportError: a path is no export of this project.
    """

    def measure_ap(detector: Detector) -> float | None:
        return _average_precision(detector, examples)

    live = Detector.from_model(model)
    ap = measure_ap(live)
    expected = [live.detect(image) for image in images]
    results = [_compare("model", True, 4 * model.count_params(), lambda: live, images, expected, ap, lambda _: ap)]
    for path in map(Path, paths):
        for name, is_exact, rounds, load in _forms(path, model):
            # A file that takes uint8 sees rounded pixels, so the model has to see these as well.
            detector = _rounding_detector(model) if rounds else live
            expected = [detector.detect(image) for image in images]
            results.append(_compare(name, is_exact, _bytes(path), load, images, expected, ap, measure_ap))
    return results


def table(results: Sequence[Agreement]) -> str:
    """The results for people."""
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
    """The results for programs: a list of `Agreement`s."""
    Path(path).write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")


def match(expected: Detections, found: Detections) -> list[tuple[int, int, float]]:
    """Pairs detections of one class, one-to-one, best overlap first, while it is at least 0.5.

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


def _forms(path: Path, model: RefineDet) -> Iterator[tuple[str, bool, bool, Callable[[], Detector]]]:
    """Name, whether it is exact, whether it rounds pixels, and a function that opens it, of each form of an export."""
    if path.is_dir():
        for signature in ("serving_default", "serving_bytes", "serving_raw", "serving_tunable"):
            is_exact = _saved_weights(path) in ("variables", "float32")

            def load(signature: str = signature) -> Detector:
                return _signature_detector(path, signature, model)

            yield f"{path.name} {signature}", is_exact, False, load
    else:
        settings = TFLiteModel(path).metadata.settings
        rounds = settings["input"]["type"] == "uint8"
        yield path.name, settings["quantize"] == "none", rounds, lambda: Detector.load(path)


def _compare(
    name: str,
    is_exact: bool,
    size: int,
    load: Callable[[], Detector],
    images: Sequence[np.ndarray],
    expected: Sequence[Detections],
    model_ap: float | None,
    measure_ap: Callable[[Detector], float | None],
) -> Agreement:
    before = _reset_peak_memory()
    detector = load()
    found = [detector.detect(image) for image in images]
    milliseconds = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        detector.detect(images[0])
        milliseconds.append((time.perf_counter() - start) * 1e3)
    peak = None if before is None else _memory("VmHWM") - before
    ap = measure_ap(detector)

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

    mean_iou = float(np.mean(overlaps)) if overlaps else 1.0
    share = clear_found / clear if clear else 1.0
    ap_loss = None if ap is None else model_ap - ap
    if is_exact:
        passed = unmatched + apart <= TIED_SHARE * count
    else:
        passed = share >= FOUND_TOLERANCE and mean_iou >= IOU_TOLERANCE and (ap_loss or 0.0) <= AP_TOLERANCE
    return Agreement(
        form=name,
        exact=is_exact,
        expected=count,
        unmatched=unmatched,
        clear_found=share,
        score_difference=float(max(scores)),
        box_difference=float(max(corners)),
        mean_iou=mean_iou,
        ap=ap,
        ap_loss=ap_loss,
        megabytes=size / 1e6,
        milliseconds=float(np.median(milliseconds)),
        peak_mib=peak,
        passed=bool(passed),
    )


def _signature_detector(path: Path, signature: str, model: RefineDet) -> Detector:
    """A detector that asks one signature of a SavedModel."""
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures[signature]
    settings = {**as_dict(model.config.detection), "objectness_threshold": model.config.objectness_threshold}

    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        if signature == "serving_raw":
            outputs = {name: value.numpy() for name, value in serve(images=images).items()}
            anchors = outputs.pop("anchors")[0]
            return pad_detections([decode_detections(outputs, anchors, settings)], settings["max_detections"])
        if signature == "serving_bytes":
            # Lossless, and not compressed, which would take longer than to detect.
            outputs = serve(image_bytes=tf.stack([tf.io.encode_png(image, compression=0) for image in images]))
        elif signature == "serving_tunable":
            names = ("score_threshold", "iou_threshold", "max_detections")
            outputs = serve(images=images, **{name: tf.constant(settings[name]) for name in names})
        else:
            outputs = serve(images=images)
        return {
            "boxes": tf.gather(outputs["detection_boxes"], [1, 0, 3, 2], axis=-1),
            "scores": outputs["detection_scores"],
            "classes": outputs["detection_classes"],
            "num_detections": outputs["num_detections"],
        }

    detector = Detector(run, list(model.config.classes))
    detector._loaded = loaded  # the signature alone does not keep the variables alive
    return detector


def _saved_weights(path: Path) -> str:
    """How a SavedModel keeps its weights, one of `serving.WEIGHTS`."""
    return json.loads((path / "assets.extra" / "detector.json").read_text(encoding="utf-8"))["weights"]


def _average_precision(detector: Detector, examples: Sequence[Example]) -> float | None:
    """Mean AP (area) at IoU 0.5."""
    if not examples:
        return None
    return evaluate(detector, ExampleSet(list(examples), detector.classes, [])).ap_area


def _rounding_detector(model: RefineDet) -> Detector:
    """`Detector.from_model`, but the pixels of the model's input are rounded."""

    @tf.function(reduce_retracing=True)
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
    """Sets the process's peak memory to what it uses, MiB; None where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    except OSError:
        return None


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))
