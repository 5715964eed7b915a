"""Class names beside and inside a SavedModel."""

from collections.abc import Sequence

import tensorflow as tf

LABELS = "labels.txt"


def write_labels(path: str, classes: Sequence[str]) -> None:
    """Writes class names to a file, in UTF-8, one on each line, in the order of their indices."""
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("".join(f"{name}\n" for name in classes))


def label_table(path: str) -> tf.lookup.StaticHashTable:
    """Returns a table from class indices (int64) to the names in a file; other indices have the empty name."""
    lines = tf.lookup.TextFileInitializer(
        path, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE
    )
    return tf.lookup.StaticHashTable(lines, default_value="")
