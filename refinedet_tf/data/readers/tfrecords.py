"""Reads record files with the feature names of the TensorFlow Object Detection API.

A record is a `tf.train.Example` with the encoded image and its objects; boxes are relative, labels count from 1. The
files of a set are named `NAME-00000-of-00008` and so on, with `label_map.pbtxt` in the same folder. Paths are those of
`tf.io.gfile`. `data.record_writer` writes such files.
"""

import collections
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from refinedet_tf.data.examples import RECORD_HEADER, Defect, ExampleSet
from refinedet_tf.data.readers.annotations import (
    AnnotatedObject,
    Reading,
    add_example,
    check_image,
    check_listed,
    collect,
    number,
    read_all,
)
from refinedet_tf.errors import DataError

LABEL_MAP = "label_map.pbtxt"
SUFFIX = ".tfrecord"
BOX_FEATURES = tuple(f"image/object/bbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))
UNFINISHED = "~"  # the first character of a file that is being written
RECORD_FOOTER = 4  # bytes after a record: a checksum


def read_tfrecords(root: str | os.PathLike, splits: Sequence[str], classes: Sequence[str] | None) -> ExampleSet:
    """Reads record files.

    Every image is decoded once, as training will decode it. The examples keep only the position of their image in the
    file.

    Args:
        root: the folder of the files, any path of `tf.io.gfile`.
        splits: names of sets: `train` matches train, train-*-of-*, train.tfrecord* and train.record*. File names and
            patterns such as `coco_train.record-?????-of-00100` work, too.
        classes: class names in the order of their indices; None takes those of label_map.pbtxt by ascending id or,
            without such a file, those found, sorted.

    Returns:
        The usable images, including those without objects, and all defects. Labels without class names get the names
        of the label map or, without one, of `classes`.

    Raises:
        DataError: a file or shard is missing or damaged, the classes do not match, or no image is usable.
    """
    root = os.fspath(root)
    paths = [path for split in splits for path in _find_files(root, split)]
    label_map = read_label_map(os.path.join(root, LABEL_MAP))
    if label_map:
        classes = check_listed(classes, list(label_map.values()), os.path.join(root, LABEL_MAP))
    labels = label_map or dict(enumerate(classes or (), start=1))
    files = read_all(
        paths,
        lambda path: [_read(path, *record, labels) for record in iterate_records(path)],
        f"Reading {', '.join(splits)}",
        unit="file",
    )
    readings = [reading for file in files for reading in file]
    return collect(readings, classes, [], f"{', '.join(splits)} of {root}")


def iterate_records(path: str) -> Iterator[tuple[int, bytes]]:
    """Yields the records of a file, each after the position of its header in bytes.

    Raises:
        DataError: the file is truncated, damaged, compressed or not a record file.
    """
    start, count = 0, 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            yield start, record
            start += RECORD_HEADER + len(record) + RECORD_FOOTER
            count += 1
    except tf.errors.OpError as error:
        raise DataError(
            f"{path} is damaged after record {count}, or not an uncompressed TFRecord file: "
            f"{error.message.split('}} ')[-1].split(' [Op:')[0]}"
        ) from error


def _read(path: str, start: int, record: bytes, labels: dict[int, str]) -> Reading:
    reading = Reading(path)
    defects = reading.defects
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # the protobuf packages differ in what they raise
        raise DataError(f"{path} has no tf.train.Example at byte {start}: {error}.") from error

    def values(name: str, *kinds: str) -> list[Any]:
        """Returns the values of a feature; none if it is of another kind."""
        kind = features[name].WhichOneof("kind") if name in features else None
        return list(getattr(features[name], kind).value) if kind in kinds else []

    def texts(name: str) -> list[str]:
        return [value.decode("utf-8", "replace") for value in values(name, "bytes_list")]

    def numbers(name: str) -> list[float]:
        return values(name, "int64_list", "float_list")

    image_id = [*texts("image/source_id"), *texts("image/filename"), str(start)][0]
    where = f"{path}, image {image_id}"
    encoded = values("image/encoded", "bytes_list")
    if not encoded:
        defects.append(Defect(where, "missing image, skipped"))
        return reading
    image = check_image(encoded[0], where, defects)
    if image is None:
        return reading
    names = texts("image/object/class/text")
    names = names or [labels.get(label, f"label {label}") for label in values("image/object/class/label", "int64_list")]
    sides = [numbers(name) for name in BOX_FEATURES]
    flags = [numbers(f"image/object/{flag}") or [0] * len(names) for flag in ("difficult", "is_crowd")]
    if len({len(names), *map(len, sides), *map(len, flags)}) > 1:
        defects.append(Defect(where, "objects with missing values, image skipped"))
        return reading
    objects = [
        AnnotatedObject(where, name, corners, difficult == 1, crowd == 1)
        for name, *corners, difficult, crowd in zip(names, *sides, *flags, strict=True)
    ]
    width, height = (number(*numbers(f"image/{side}")[:1] or [None]) for side in ("width", "height"))
    part = locate(encoded[0], record, start)
    add_example(
        reading, image_id, path, image, objects, stated_size=(width, height), where=where, part=part, relative=True
    )
    return reading


def locate(encoded: bytes, record: bytes, start: int) -> tuple[int, int, int]:
    """Returns the `Example.part` of an encoded image inside the record at byte `start` of its file."""
    return start, record.index(encoded), len(encoded)


def _find_files(root: str, split: str) -> list[str]:
    """Returns the files of a complete set, in order."""
    patterns = [split, f"{split}-?????-of-?????", f"{split}.tfrecord*", f"{split}.record*"]
    found = sorted({path for pattern in patterns for path in tf.io.gfile.glob(os.path.join(root, pattern))})
    paths = [path for path in found if not os.path.basename(path).startswith(UNFINISHED)]
    if not paths:
        known = sorted(os.path.basename(path) for path in tf.io.gfile.glob(os.path.join(root, "*record*")))
        raise DataError(f"{root} has no records {split}; its record files: {', '.join(known[:10]) or 'none'}.")
    sets = collections.defaultdict(set)
    for path in paths:
        shard = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})", path)
        if shard:
            sets[shard[1], int(shard[3])].add(int(shard[2]))
    for (name, total), shards in sets.items():
        missing = sorted(set(range(total)) - shards)
        if missing:
            raise DataError(
                f"{name} is incomplete: {len(missing)} of {total} files are missing, the first is "
                f"{name}-{missing[0]:05}-of-{total:05}."
            )
    names = [name for name, _ in sets]
    if len(set(names)) < len(names):
        raise DataError(f"{root} has two sets {split}, with different numbers of files; delete one of them.")
    return paths


def read_label_map(path: str) -> dict[int, str]:
    """Returns names by ascending label, or nothing if there is no such file."""
    if not tf.io.gfile.exists(path):
        return {}
    with tf.io.gfile.GFile(path, "rb") as file:
        text = file.read().decode("utf-8", "replace")
    labels = re.findall(r"\bid\s*:\s*(\d+)", text)
    quoted = re.findall(r"""\bname\s*:\s*(?:("(?:[^"\\]|\\.)*")|'([^']*)')""", text)
    try:
        names = [json.loads(double) if double else single for double, single in quoted]
    except ValueError as error:
        raise DataError(f"{path} is not a label map: a name cannot be read: {error}.") from error
    if len(labels) != len(names):
        raise DataError(f"{path} is not a label map: it has {len(labels)} ids and {len(names)} names.")
    return dict(sorted(zip(map(int, labels), names, strict=True)))
