"""Writing millions of labeled images as record files with Apache Beam, which is the extra `beam`."""

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from refinedet_tf.config import DataConfig
from refinedet_tf.data.examples import Defect
from refinedet_tf.data.readers.annotations import Listing, Reading, collect
from refinedet_tf.data.readers.coco import list_coco
from refinedet_tf.data.readers.tfrecords import SUFFIX
from refinedet_tf.data.readers.voc import list_voc
from refinedet_tf.data.readers.yolo import list_yolo
from refinedet_tf.data.record_writer import prepare_folder, to_record
from refinedet_tf.errors import DataError

LISTERS = {"voc": list_voc, "coco": list_coco, "yolo": list_yolo}
DEFECTS = "defects"


def write_tfrecords_at_scale(
    recipe: DataConfig | str,
    data_dir: str,
    splits: Sequence[str],
    output_dir: str,
    *,
    classes: Sequence[str] | None = None,
    shards: int = 8,
    options: Sequence[str] = (),
) -> None:
    """Writes the records that `refinedet make-tfrecords` writes, on one machine or many, and waits for the end.

    This machine lists the images; the workers read, check and write them. Their order is not kept.

    Args:
        recipe: the section `data` of a recipe, or a format: `voc`, `coco` or `yolo`.
        data_dir: the data set, on a file system that every worker sees under the same path.
        splits: the splits to write, each as a set of files.
        output_dir: the folder to write, on any path that both Beam and `tf.io.gfile` write. It gets `label_map.pbtxt`,
            `SPLIT.tfrecord-00000-of-00008` and so on, and `SPLIT.defects-*.jsonl` with `where` and `what` of each
            problem in the data, such as an unreadable image, which is left out.
        classes: class names in the order of their labels; `voc` needs them, since it lists them nowhere.
        shards: number of files of each split.
        options: flags of Beam and its runners, such as "--runner=FlinkRunner".

    Raises:
        DataError: the data set cannot be listed, the folder has other records, or the recipe divides or renames. All
            this is checked before anything is written.
    """
    data = DataConfig(format=recipe) if isinstance(recipe, str) else recipe
    if data.format not in LISTERS:
        raise DataError(f"Records are made of {', '.join(LISTERS)}; {data.format} has record files already.")
    if data.rename or data.other_classes != "error" or data.split.val:
        raise DataError("Records keep the classes and splits of the data: set rename, other_classes and split in the "
                        "recipe that reads them.")  # fmt: skip
    paths = {"annotations": data.annotations, "images": data.images} if data.format == "coco" else {}
    listings = {}
    for split in splits:
        listing = LISTERS[data.format](data_dir, [split], classes, **paths)
        classes = listing.classes
        listings[split.replace("/", "_")] = listing
    if classes is None:
        raise DataError("VOC lists its classes nowhere but in the annotations; give `classes`.")
    prepare_folder(output_dir, list(listings), classes)
    lists = {name: FileSystems.join(output_dir, f"~{name}.images") for name in listings}
    try:
        for name, path in lists.items():
            _write_list(path, listings[name])
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            for name, path in lists.items():
                pipeline | name >> WriteRecords(path, listings[name], FileSystems.join(output_dir, name), shards)
    finally:
        for path in filter(tf.io.gfile.exists, lists.values()):
            tf.io.gfile.remove(path)


class WriteRecords(beam.PTransform):
    """Reads the images of a list, and writes records and defects."""

    def __init__(self, path: str, listing: Listing, prefix: str, shards: int):
        """Stores the settings; `path` has the images of the listing, and `prefix` begins the names of the outputs."""
        super().__init__()
        self._path = path
        self._to_record = ToRecord(listing.read, listing.classes)
        self._defects = listing.defects
        self._prefix = prefix
        self._shards = shards

    def expand(self, pipeline: beam.Pipeline) -> Any:
        """Builds the pipeline."""
        images = (
            pipeline
            | "List" >> beam.io.ReadFromTFRecord(self._path)
            | "Spread" >> beam.Reshuffle()
            | "Unpack" >> beam.Map(pickle.loads)
        )
        found = images | "Read" >> beam.ParDo(self._to_record).with_outputs(DEFECTS, main="records")
        found.records | "Write" >> beam.io.WriteToTFRecord(self._prefix + SUFFIX, num_shards=self._shards)
        of_list = pipeline | "Defects of the list" >> beam.Create(self._defects)
        defects = (found[DEFECTS], of_list) | "All defects" >> beam.Flatten() | "To JSON" >> beam.Map(_to_json)
        return defects | "Write defects" >> beam.io.WriteToText(f"{self._prefix}.{DEFECTS}", file_name_suffix=".jsonl")


class ToRecord(beam.DoFn):
    """Turns an entry of a listing into a serialized record."""

    def __init__(self, read: Callable[[Any], Reading], classes: Sequence[str]):
        """Stores how entries are read, and the class names."""
        super().__init__()
        self._read = read
        self._classes = classes

    def process(self, image: Any) -> Iterator[Any]:
        """Yields the record, if the image can be used, and its defects.

        Raises:
            DataError: an object has another class.
        """
        reading = self._read(image)
        for defect in reading.defects:
            yield beam.pvalue.TaggedOutput(DEFECTS, defect)
        if reading.example is not None:
            (example,) = collect([reading], self._classes, [], reading.source).examples
            yield to_record(example, self._classes).SerializeToString(deterministic=True)


def _write_list(path: str, listing: Listing) -> None:
    """Writes the images of a listing: the description of a pipeline has no room for millions."""
    with tf.io.TFRecordWriter(path) as writer:
        for image in listing.images:
            writer.write(pickle.dumps(image))


def _to_json(defect: Defect) -> str:
    return json.dumps({"where": defect.where, "what": defect.what})
