"""Class names beside and inside a SavedModel."""

from collections.abc import Sequence

import tensorflow as tf

LABELS = "labels.txt"


def write_labels(path: str, classes: Sequence[str]) -> None:
    """Writes class names to a file, UTF-8, one a line in the order of their indices."""
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("".join(f"{name}\n" for name in classes))


def read_labels(saved_model: str) -> list[str]:
    """The class names of an exported SavedModel, which carries them as an asset.

    Raises:
        tf.errors.NotFoundError: the folder has no such asset.
    """
    with tf.io.gfile.GFile(tf.io.gfile.join(saved_model, "assets", LABELS)) as file:
        return file.read().splitlines()


def label_table(path: str) -> tf.lookup.StaticHashTable:
    """From class indices (int64) to names as `write_labels` wrote them; other indices have the empty name."""
    lines = tf.lookup.TextFileInitializer(
        path, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
    )
    return tf.lookup.StaticHashTable(lines, default_value="")
