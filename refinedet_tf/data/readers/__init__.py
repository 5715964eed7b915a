"""One function for the readers of all formats."""

import os
from collections.abc import Sequence

from refinedet_tf.data.examples import ExampleSet
from refinedet_tf.data.readers.coco import read_coco
from refinedet_tf.data.readers.tfds import read_tfds
from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.readers.voc import read_voc

READERS = {"voc": read_voc, "coco": read_coco, "tfrecord": read_tfrecords, "tfds": read_tfds}


def read_data(
    data_format: str, data_dir: str | os.PathLike, splits: Sequence[str], classes: Sequence[str] | None
) -> ExampleSet:
    """Reads labelled images.

    Args:
        data_format: one of `config.DATA_FORMATS`.
        data_dir: the data set; see the reader of the format for what is expected there.
        splits: names of its parts.
        classes: names of the classes, in the order of their indices; None takes those of the data.

    Returns:
        The usable images and the defects of the rest.

    Raises:
        DataError: something is missing, classes do not fit, or no image is usable.
    """
    return READERS[data_format](data_dir, splits, classes)
