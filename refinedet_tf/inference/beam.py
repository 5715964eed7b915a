"""Detecting objects in millions of images with Apache Beam, which is the extra `beam`.

Any of Beam's runners takes the pipeline: one machine with several workers, Dataflow, Flink or Spark. What a worker did
is kept when its bundle is finished; a bundle that fails is repeated, and its images are in the results once.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from refinedet_tf.errors import DataError
from refinedet_tf.inference.detector import BATCH_SIZE, Detections, unpad_detections
from refinedet_tf.inference.images import upright_size
from refinedet_tf.inference.results import coco_rows
from refinedet_tf.inference.saved_model_runner import SavedModel

FORMATS = ("jsonl", "parquet")
SKIPPED = "skipped"
# A file with one of these errors stays unreadable; after any other error the bundle is tried again.
UNREADABLE = (tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.FailedPreconditionError)

PARQUET_SCHEMA = pyarrow.schema([
    ("file_name", pyarrow.string()),
    ("width", pyarrow.int32()),
    ("height", pyarrow.int32()),
    ("annotations", pyarrow.list_(pyarrow.struct([
        ("category_id", pyarrow.int32()),
        ("category", pyarrow.string()),
        ("bbox", pyarrow.list_(pyarrow.float32())),
        ("score", pyarrow.float32()),
    ]))),
])  # fmt: skip


class ImageKey(NamedTuple):
    """Name and upright size, in pixels, of an image; known before it is decoded."""

    name: str
    width: int
    height: int


def detect_at_scale(
    inputs: Sequence[str],
    model: str,
    output_dir: str,
    *,
    records: bool = False,
    file_format: str = "jsonl",
    score_threshold: float = 0.5,
    options: Sequence[str] = (),
) -> None:
    """Detects objects in image files or TFRecords on one machine or many, and waits for the end.

    Args:
        inputs: files or glob patterns, on any path that `tf.io.gfile` reads (local, gs://, s3://, hdfs://).
        model: a SavedModel folder that this project exported, on a path that every worker reads.
        output_dir: the folder to write, on any path that Beam writes. Its files `detections-00000-of-00004.jsonl` and
            so on have one line (or row) for each image: `file_name`, `width`, `height` and `annotations`, each with
            `category_id` (the class index plus 1), `category`, `bbox` (x, y, width, height in pixels) and `score`, as
            in COCO's results. The files `skipped-*.jsonl` have `file_name` and `reason` for each file that is no image.
            Files of these names from an earlier run are replaced.
        records: whether the inputs are TFRecord files with `image/encoded`, as `make-tfrecords` writes them. An image
            is then called by its `image/filename`.
        file_format: one of `FORMATS`.
        score_threshold: the lowest score to report.
        options: flags of Beam and its runners, such as "--runner=FlinkRunner".

    Raises:
        DataError: there is no such format.
    """
    if file_format not in FORMATS:
        raise DataError(f"There is no format {file_format!r}; use {' or '.join(FORMATS)}.")
    # Beam first deletes all files that begin like those it writes, so neither name may be the beginning of the other.
    results = FileSystems.join(output_dir, "detections")
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        patterns = pipeline | "Inputs" >> beam.Create(list(inputs))
        found, skipped = patterns | "Detect" >> DetectObjects(model, records=records, score_threshold=score_threshold)
        if file_format == "parquet":
            found | "Write" >> beam.io.WriteToParquet(results, PARQUET_SCHEMA, file_name_suffix=".parquet")
        else:
            lines = found | "To JSON" >> beam.Map(json.dumps)
            lines | "Write" >> beam.io.WriteToText(results, file_name_suffix=".jsonl")
        reasons = skipped | "Skipped to JSON" >> beam.Map(json.dumps)
        reasons | "Write skipped" >> beam.io.WriteToText(
            FileSystems.join(output_dir, SKIPPED), file_name_suffix=".jsonl"
        )


class DetectObjects(beam.PTransform):
    """Turns a collection of patterns into results of images and a list of skipped files; see `detect_at_scale`."""

    def __init__(self, model: str, *, records: bool = False, score_threshold: float = 0.5):
        """Stores the settings; nothing is read before the pipeline runs."""
        super().__init__()
        self._model = model
        self._read = ReadRecords() if records else ReadFile()
        self._score_threshold = score_threshold

    def expand(self, patterns: beam.PCollection) -> Any:
        """Builds the pipeline."""
        paths = patterns | "Expand" >> beam.ParDo(ExpandPattern()).with_outputs(SKIPPED, main="found")
        encoded = (
            paths.found
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(self._read).with_outputs(SKIPPED, main="found")
        )
        sized = encoded.found | "Measure" >> beam.ParDo(MeasureImage()).with_outputs(SKIPPED, main="found")
        inference = sized.found | "Infer" >> RunInference(KeyedModelHandler(SavedModelHandler(self._model)))
        results = inference | "Results" >> beam.ParDo(ToResult(self._score_threshold)).with_outputs(
            SKIPPED, main="found"
        )
        skipped = [part[SKIPPED] for part in (paths, encoded, sized, results)] | "All skipped" >> beam.Flatten()
        return results.found, skipped


class BytesModel:
    """The signature `serving_bytes` of a SavedModel, with its class names."""

    def __init__(self, path: str):
        """Loads the SavedModel, on any path that `tf.io.gfile` reads."""
        self._model = SavedModel(path, "serving_bytes")

    def detect(self, contents: Sequence[bytes]) -> list[Detections | None]:
        """Detects objects in encoded images; None for one that cannot be decoded."""
        detections, is_valid = self._model.detect_files(contents)
        found = unpad_detections(detections, self._model.classes)
        return [image if valid else None for image, valid in zip(found, is_valid, strict=True)]


class SavedModelHandler(ModelHandler[bytes, Detections | None, BytesModel]):
    """Gives Beam a `BytesModel`; the inference of an image is its `Detections` of any score, or None."""

    def __init__(self, model: str):
        """Names the SavedModel; each worker loads it once."""
        super().__init__(min_batch_size=1, max_batch_size=BATCH_SIZE)
        self._model = model

    def load_model(self) -> BytesModel:
        """Loads the SavedModel."""
        return BytesModel(self._model)

    def run_inference(
        self, batch: Sequence[bytes], model: BytesModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """Detects objects in a batch."""
        del inference_args
        found = model.detect(batch)
        return [PredictionResult(content, image) for content, image in zip(batch, found, strict=True)]


class ExpandPattern(beam.DoFn):
    """Turns a pattern into the paths of files."""

    def process(self, pattern: str) -> Iterator[Any]:
        """Yields each file; a pattern without any is skipped."""
        paths = [path for path in tf.io.gfile.glob(pattern) if not tf.io.gfile.isdir(path)]
        yield from paths
        if not paths:
            yield _skipped(pattern, "no such file")


class ReadFile(beam.DoFn):
    """Turns a path into a name and an encoded image."""

    def process(self, path: str) -> Iterator[Any]:
        """Yields the contents of the file."""
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                yield path, file.read()
        except UNREADABLE as error:
            yield _skipped(path, error.message)


class ReadRecords(beam.DoFn):
    """Turns the path of a TFRecord file into names and encoded images."""

    def process(self, path: str) -> Iterator[Any]:
        """Yields each image; a damaged file gives the images before the damage, and is skipped from there."""
        number = 0
        try:
            for number, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator(), start=1):
                yield self._parse(f"{path}, record {number}", record)
        except (tf.errors.DataLossError, *UNREADABLE) as error:
            yield _skipped(path, f"unreadable after record {number}: {error.message}")

    @staticmethod
    def _parse(where: str, record: bytes) -> tuple[str, bytes] | beam.pvalue.TaggedOutput:
        example = tf.train.Example()
        try:
            example.ParseFromString(record)
        except Exception as error:  # protobuf's DecodeError, whose module differs between its versions
            return _skipped(where, f"no tf.train.Example: {error}")
        features = example.features.feature
        encoded, names = (features[key].bytes_list.value for key in ("image/encoded", "image/filename"))
        if not encoded:
            return _skipped(where, "no image/encoded")
        return (names[0].decode(errors="replace") if names else where), encoded[0]


class MeasureImage(beam.DoFn):
    """Turns names and encoded images into `ImageKey`s and encoded images."""

    def process(self, image: tuple[str, bytes]) -> Iterator[Any]:
        """Reads the size in the header; images without one, or with too many pixels, are skipped."""
        name, content = image
        try:
            width, height = upright_size(content, name)
            yield ImageKey(name, width, height), content
        except DataError as error:
            yield _skipped(name, str(error))


class ToResult(beam.DoFn):
    """Turns inferences into results in the form of COCO."""

    def __init__(self, score_threshold: float):
        """Leaves out lower scores."""
        super().__init__()
        self._score_threshold = score_threshold

    def process(self, keyed: tuple[ImageKey, PredictionResult]) -> Iterator[Any]:
        """Yields the result of the image, or skips it."""
        (name, width, height), prediction = keyed
        found = prediction.inference
        if found is None:
            yield _skipped(name, f"{name} cannot be decoded.")
            return
        found = found[found.scores >= self._score_threshold]
        rows = zip(found.names, coco_rows(found, width, height), strict=True)
        annotations = [{"category": label, **row} for label, row in rows]
        yield {"file_name": name, "width": width, "height": height, "annotations": annotations}


def _skipped(name: str, reason: str) -> beam.pvalue.TaggedOutput:
    return beam.pvalue.TaggedOutput(SKIPPED, {"file_name": name, "reason": reason})
