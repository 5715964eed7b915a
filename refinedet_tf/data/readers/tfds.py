"""Reads detection data sets of `tensorflow_datasets`, if that package is installed (KerasCV requires it)."""

import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.readers.annotations import (
    AnnotatedObject,
    Reading,
    add_example,
    check_image,
    check_listed,
    collect,
    read_all,
)
from refinedet_tf.data.readers.tfrecords import iterate_records, locate
from refinedet_tf.errors import DataError


def read_tfds(root: str | os.PathLike, splits: Sequence[str], classes: Sequence[str] | None) -> ExampleSet:
    """Reads data sets with the features `image` and `objects` (`bbox`, `label`; optionally `is_difficult`, `is_crowd`).

    A missing data set is downloaded and prepared. Every image is decoded once; the examples keep only the position of
    their image in the file.

    Args:
        root: the data folder of tensorflow_datasets, such as ~/tensorflow_datasets.
        splits: names of data set and split: voc/2007/trainval, coco/2017/train or voc/2012/train[:10%].
        classes: class names in the order of their indices; None takes those of the data.

    Returns:
        The usable images, including those without objects, and all defects.

    Raises:
        DataError: the package, the data set or the split is missing, the data set is not for detection or not stored as
            TFRecord, the classes do not match, or no image is usable.
    """
    try:
        # The package itself hides errors of its own imports.
        from tensorflow_datasets import public_api as tfds
    except ImportError as error:
        raise DataError(f"data.format tfds needs the package tensorflow_datasets: {error}.") from error
    files = []
    for split in splits:
        name, _, part = split.rpartition("/")
        try:
            builder = tfds.builder(name, data_dir=os.path.expanduser(os.fspath(root)))
            builder.download_and_prepare()
            instructions = builder.info.splits[part].file_instructions
        except ImportError as error:
            raise DataError(f"Preparing {name} needs a further package: {error}.") from error
        except (ValueError, KeyError, AssertionError) as error:
            raise DataError(
                f"tensorflow_datasets has no {split} (data set and split, such as voc/2007/train): "
                f"{str(error).splitlines()[0]}"
            ) from error
        features = builder.info.features
        objects = getattr(features["objects"], "feature", ()) if "objects" in features else ()
        if "image" not in features or not {"bbox", "label"} <= set(objects):
            raise DataError(f"{name} is not a data set for detection; its features are {', '.join(features)}.")
        if builder.info.file_format.value != "tfrecord":
            raise DataError(f"{name} is stored as {builder.info.file_format.value}; prepare it as tfrecord.")
        classes = check_listed(classes, objects["label"].names, name)
        files += [(instruction, features) for instruction in instructions]

    skip = tfds.decode.SkipDecoding()
    read = read_all(files, lambda file: _read_file(*file, skip), f"Reading {', '.join(splits)}", unit="file")
    return collect([reading for file in read for reading in file], classes, [], f"{', '.join(splits)} of {root}")


def _read_file(instruction: Any, features: Any, skip: Any) -> list[Reading]:
    """Reads the part of a file that `instruction` names: `take` records after `skip` others."""
    end = None if instruction.take == -1 else instruction.skip + instruction.take
    path, readings = str(instruction.filename), []
    for index, (start, record) in enumerate(iterate_records(path)):
        if index == end:
            break
        if index >= instruction.skip:
            values = features.deserialize_example(tf.constant(record), decoders={"image": skip})
            readings.append(_read(path, start, record, values, features["objects"].feature["label"].names))
    return readings


def _read(path: str, start: int, record: bytes, values: dict[str, Any], names: Sequence[str]) -> Reading:
    reading = Reading(path)
    encoded = values["image"].numpy()
    image_id = values["image/filename"].numpy().decode() if "image/filename" in values else str(start)
    where = f"{path}, image {image_id}"
    image = check_image(encoded, where, reading.defects)
    if image is None:
        return reading
    objects = {key: value.numpy() for key, value in values["objects"].items()}
    annotated = []
    for index, (ymin, xmin, ymax, xmax) in enumerate(objects["bbox"].tolist()):
        flags = {
            flag: bool(objects[key][index])
            for flag, key in (("difficult", "is_difficult"), ("crowd", "is_crowd"))
            if key in objects
        }
        name = names[objects["label"][index]]
        annotated.append(AnnotatedObject(where, name, (xmin, ymin, xmax, ymax), **flags))
    add_example(reading, image_id, path, image, annotated, part=locate(encoded, record, start), relative=True)
    return reading
