"""Writes examples as record files with the feature names of the TensorFlow Object Detection API."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.data.readers.tfrecords import BOX_FEATURES, LABEL_MAP, SUFFIX, UNFINISHED, read_label_map
from refinedet_tf.errors import DataError


def write_tfrecords(example_set: ExampleSet, output_dir: str, name: str, shards: int) -> list[str]:
    """Writes a set of record files in parallel, and the label map.

    File names begin with "~" until all files are complete.

    Args:
        example_set: the examples to write.
        output_dir: the folder, created if missing.
        name: name of the set, such as `train`.
        shards: number of files; at most one per example is written.

    Returns:
        The paths of the files.

    Raises:
        DataError: the folder has records of that name or a label map with other classes, or the examples have ignored
            objects, for which records have no place; nothing is changed. Or a file cannot be written.
    """
    if any(len(example.ignored) for example in example_set.examples):
        raise DataError(
            "Records have no place for ignored objects. Write all classes of the data, and set data.other_classes in "
            "the recipe that reads the records."
        )
    try:
        prepare_folder(output_dir, [name], example_set.classes)
        return _write_shards(example_set, output_dir, name, shards)
    except tf.errors.OpError as error:
        raise DataError(f"The records {name} cannot be written to {output_dir}: {error.message}.") from error


def prepare_folder(output_dir: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """Makes a folder with a label map for record files.

    Raises:
        DataError: the folder has records of one of these names or a label map with other classes; nothing is changed.
    """
    present = [path for name in names for path in tf.io.gfile.glob(os.path.join(output_dir, f"{name}{SUFFIX}*"))]
    if present:
        raise DataError(f"The records exist already, the first is {present[0]}; delete them or choose another folder.")
    tf.io.gfile.makedirs(output_dir)
    _write_label_map(os.path.join(output_dir, LABEL_MAP), classes)


def _write_shards(example_set: ExampleSet, output_dir: str, name: str, shards: int) -> list[str]:
    examples, shards = example_set.examples, min(shards, len(example_set))
    names = [f"{name}{SUFFIX}-{shard:05}-of-{shards:05}" for shard in range(shards)]
    paths = [os.path.join(output_dir, file) for file in names]
    unfinished = [os.path.join(output_dir, UNFINISHED + file) for file in names]
    try:
        with tqdm(total=len(examples), desc=f"Writing {name}", unit="image", delay=2) as progress:

            def write(shard: int) -> None:
                with tf.io.TFRecordWriter(unfinished[shard]) as writer:
                    for example in examples[shard * len(examples) // shards : (shard + 1) * len(examples) // shards]:
                        writer.write(to_record(example, example_set.classes).SerializeToString(deterministic=True))
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
    """Returns an example as a record, with the bytes of its image file unchanged."""
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


def _write_label_map(path: str, classes: Sequence[str]) -> None:
    present = read_label_map(path)
    if present and list(present.values()) != list(classes):
        raise DataError(
            f"{path} has other classes: {', '.join(present.values())}. The data has: {', '.join(classes)}. "
            "Choose another folder."
        )
    items = [
        f"item {{\n  id: {label}\n  name: {json.dumps(name, ensure_ascii=False)}\n}}\n"
        for label, name in enumerate(classes, start=1)
    ]
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("".join(items))


def _feature(values: Sequence[Any]) -> tf.train.Feature:
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _format(contents: bytes) -> bytes:
    """Returns the format of an image by its first bytes."""
    return next(
        (
            name
            for magic, name in ((b"\xff\xd8", b"jpeg"), (b"\x89PNG", b"png"), (b"GIF8", b"gif"))
            if contents.startswith(magic)
        ),
        b"bmp",
    )
