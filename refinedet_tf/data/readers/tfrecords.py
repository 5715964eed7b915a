"""Record files with the feature names of the TensorFlow Object Detection API: writing and reading.

A record is a `tf.train.Example` with the encoded image and its objects; boxes are relative, labels count from 1. A set
of records is `NAME-00000-of-00008` and so on, with `label_map.pbtxt` beside it. Paths are those of `tf.io.gfile`.
"""

import collections
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from refinedet_tf.data.examples import RECORD_HEADER, Defect, Example, ExampleSet
from refinedet_tf.data.readers.shared import (
    AnnotatedObject,
    Reading,
    add_example,
    check_listed,
    collect,
    image_size,
    number,
    read_all,
)
from refinedet_tf.errors import DataError

LABEL_MAP = "label_map.pbtxt"
SUFFIX = ".tfrecord"
BOX_FEATURES = tuple(f"image/object/bbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax"))
UNFINISHED = "~"  # the first character of a file that is being written
RECORD_FOOTER = 4  # bytes that TFRecord puts behind a record: a checksum


def write_tfrecords(example_set: ExampleSet, output_dir: str, name: str, shards: int) -> list[str]:
    """Writes a set of records, several files at a time, and the label map.

    The files have their names only when all of them are complete; until then they begin with "~".

    Args:
        example_set: what to write; its defects stay behind.
        output_dir: the folder, made if missing.
        name: of the set, such as `train`.
        shards: number of files; no more than there are examples.

    Returns:
        The files.

    Raises:
        DataError: the folder has records of that name, or a label map with other classes; nothing is changed.
    """
    present = tf.io.gfile.glob(os.path.join(output_dir, f"{name}{SUFFIX}*"))
    if present:
        raise DataError(
            f"There are such records already, the first is {present[0]}; delete them or name another folder."
        )
    tf.io.gfile.makedirs(output_dir)
    _write_label_map(os.path.join(output_dir, LABEL_MAP), example_set.classes)
    examples, shards = example_set.examples, min(shards, len(example_set))
    names = [f"{name}{SUFFIX}-{shard:05}-of-{shards:05}" for shard in range(shards)]
    paths = [os.path.join(output_dir, file) for file in names]
    unfinished = [os.path.join(output_dir, UNFINISHED + file) for file in names]
    try:
        with tqdm(total=len(examples), desc=f"Writing {name}", unit="image", delay=2) as progress:

            def write(shard: int) -> None:
                with tf.io.TFRecordWriter(unfinished[shard]) as writer:
                    for example in examples[shard * len(examples) // shards : (shard + 1) * len(examples) // shards]:
                        writer.write(to_record(example, example_set.classes).SerializeToString())
                        progress.update()

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(write, range(shards)))
        for before, after in zip(unfinished, paths, strict=True):
            tf.io.gfile.rename(before, after)
    finally:
        for path in filter(tf.io.gfile.exists, unfinished):
            tf.io.gfile.remove(path)
    return paths


def to_record(example: Example, classes: Sequence[str]) -> tf.train.Example:
    """One example with the bytes of its image, as they are stored."""
    contents = example.read_image()
    names = [classes[index].encode() for index in example.classes]
    values = {
        "image/height": [example.height],
        "image/width": [example.width],
        "image/source_id": [example.image_id.encode()],
        "image/filename": [os.path.basename(example.image_path).encode()],
        "image/encoded": [contents],
        "image/format": [_format(contents)],
        "image/object/class/text": names,
        "image/object/class/label": [int(index) + 1 for index in example.classes],
        "image/object/difficult": [int(flag) for flag in example.difficult],
        "image/object/is_crowd": [int(flag) for flag in example.crowd],
    }
    features = {name: _feature(value) for name, value in values.items()}
    for name, side in zip(BOX_FEATURES, example.boxes.T, strict=True):
        features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=side))
    return tf.train.Example(features=tf.train.Features(feature=features))


def read_tfrecords(root: str | os.PathLike, splits: Sequence[str], classes: Sequence[str] | None) -> ExampleSet:
    """Reads record files.

    All are read once, and every image is decoded, as training will do it. The examples keep only the place of their
    image in the file.

    Args:
        root: the folder with the files, any path of `tf.io.gfile`.
        splits: names of sets: `train` means train, train-*-of-*, train.tfrecord* and train.record*. A file's name or a
            pattern such as `coco_train.record-?????-of-00100` is good as well.
        classes: names of the classes, in the order of their indices; None takes those of label_map.pbtxt by ascending
            id, or if there is no such file, those found in alphabetical order.

    Returns:
        The readable images, those without objects among them, and the defects of the rest. Where records give no class
        names, labels have those of the label map or, without one, of `classes`.

    Raises:
        DataError: a file or one of its shards is missing or damaged, the classes do not fit together, or no image is
            left.
    """
    root = os.fspath(root)
    paths = [path for split in splits for path in _find_files(root, split)]
    label_map = _read_label_map(os.path.join(root, LABEL_MAP))
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
    """The records of a file, each with the byte at which it begins, header included.

    Raises:
        DataError: the file is cut short, damaged, compressed or no record file.
    """
    start, count = 0, 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            yield start, record
            start += RECORD_HEADER + len(record) + RECORD_FOOTER
            count += 1
    except tf.errors.OpError as error:
        raise DataError(
            f"{path} is damaged after record {count}, or no uncompressed TFRecord file: "
            f"{error.message.split('}} ')[-1].split(' [Op:')[0]}"
        ) from error


def _read(path: str, start: int, record: bytes, labels: dict[int, str]) -> Reading:
    reading = Reading(path)
    defects = reading.defects
    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # the protobuf packages differ in what they raise
        raise DataError(f"{path} holds no tf.train.Example at byte {start}: {error}.") from error

    def values(name: str) -> list[Any]:
        kind = features[name].WhichOneof("kind") if name in features else None
        return list(getattr(features[name], kind).value) if kind else []

    image_id = next(
        (value[0].decode() for name in ("image/source_id", "image/filename") if (value := values(name))), str(start)
    )
    where = f"{path}, image {image_id}"
    encoded = values("image/encoded")
    if not encoded:
        defects.append(Defect(where, "missing image, skipped"))
        return reading
    size = image_size(encoded[0], where, defects)
    if size is None:
        return reading
    stated = *map(number, values("image/height")), *map(number, values("image/width"))
    if len(stated) == 2 and min(stated) > 0 and stated != size:
        what = f"wrong size, the image's own was used: {stated[1]:g} x {stated[0]:g}, is {size[1]} x {size[0]}"
        defects.append(Defect(where, what))

    names = [name.decode() for name in values("image/object/class/text")]
    names = names or [labels.get(label, f"label {label}") for label in values("image/object/class/label")]
    sides = [values(name) for name in BOX_FEATURES]
    flags = [values(f"image/object/{flag}") or [0] * len(names) for flag in ("difficult", "is_crowd")]
    if len({len(names), *map(len, sides), *map(len, flags)}) > 1:
        defects.append(Defect(where, "objects with missing values, image skipped"))
        return reading
    objects = [
        AnnotatedObject(where, name, corners, difficult == 1, crowd == 1)
        for name, *corners, difficult, crowd in zip(names, *sides, *flags, strict=True)
    ]
    add_example(reading, image_id, path, size, objects, locate(encoded[0], record, start), relative=True)
    return reading


def locate(encoded: bytes, record: bytes, start: int) -> tuple[int, int, int]:
    """The `Example.part` of an encoded image that stands as it is in the record that begins at `start`."""
    return start, record.index(encoded), len(encoded)


def _find_files(root: str, split: str) -> list[str]:
    """The files of a set, in order, none missing."""
    patterns = [split, f"{split}-?????-of-?????", f"{split}.tfrecord*", f"{split}.record*"]
    found = sorted({path for pattern in patterns for path in tf.io.gfile.glob(os.path.join(root, pattern))})
    paths = [path for path in found if not os.path.basename(path).startswith(UNFINISHED)]
    if not paths:
        known = sorted(os.path.basename(path) for path in tf.io.gfile.glob(os.path.join(root, "*record*")))
        raise DataError(f"{root} has no records {split}; record files there: {', '.join(known[:10]) or 'none'}.")
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
        raise DataError(f"{root} has {split} twice, in different numbers of files; delete one of the sets.")
    return paths


def _write_label_map(path: str, classes: Sequence[str]) -> None:
    present = _read_label_map(path)
    if present and list(present.values()) != list(classes):
        raise DataError(
            f"{path} has other classes: {', '.join(present.values())}. To be written are: "
            f"{', '.join(classes)}. Name another folder."
        )
    items = [
        f"item {{\n  id: {label}\n  name: {json.dumps(name, ensure_ascii=False)}\n}}\n"
        for label, name in enumerate(classes, start=1)
    ]
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("".join(items))


def _read_label_map(path: str) -> dict[int, str]:
    """Names by ascending label; empty if there is no such file."""
    if not tf.io.gfile.exists(path):
        return {}
    with tf.io.gfile.GFile(path, "r") as file:
        text = file.read()
    labels = re.findall(r"\bid\s*:\s*(\d+)", text)
    quoted = re.findall(r"""\bname\s*:\s*(?:("(?:[^"\\]|\\.)*")|'([^']*)')""", text)
    names = [json.loads(double) if double else single for double, single in quoted]
    if len(labels) != len(names):
        raise DataError(f"{path} is no label map: {len(labels)} ids and {len(names)} names.")
    return dict(sorted(zip(map(int, labels), names, strict=True)))


def _feature(values: Sequence[Any]) -> tf.train.Feature:
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _format(contents: bytes) -> bytes:
    """What the first bytes of an image say it is."""
    return next(
        (
            name
            for magic, name in ((b"\xff\xd8", b"jpeg"), (b"\x89PNG", b"png"), (b"GIF8", b"gif"))
            if contents.startswith(magic)
        ),
        b"bmp",
    )
