"""One function for the readers of all formats."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from refinedet_tf.config import Config, DataConfig, SplitConfig
from refinedet_tf.data.class_selection import select_classes
from refinedet_tf.data.examples import ExampleSet, merge
from refinedet_tf.data.readers.annotations import check_listed
from refinedet_tf.data.readers.coco import read_coco
from refinedet_tf.data.readers.tfds import read_tfds
from refinedet_tf.data.readers.tfrecords import read_tfrecords
from refinedet_tf.data.readers.voc import read_voc
from refinedet_tf.data.readers.yolo import read_yolo
from refinedet_tf.data.splitting import select_listed, split_examples, write_list
from refinedet_tf.errors import DataError

READERS = {"voc": read_voc, "coco": read_coco, "yolo": read_yolo, "tfrecord": read_tfrecords, "tfds": read_tfds}
LISTS_CLASSES = ("coco", "yolo", "tfds")  # formats that name classes without objects, too
LIST = ".txt"


def read_data(
    recipe: Config | DataConfig | str,
    data_dir: str | os.PathLike,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
) -> ExampleSet:
    """Reads labeled images.

    Args:
        recipe: a recipe or its section `data`, which says how to read; or a format, one of `config.DATA_FORMATS`.
        data_dir: the data set; the reader of the format says what it expects there.
        splits: names of its parts: `train` and `val` if the recipe has `data.split`. The path of a text file with image
            ids, such as a training run leaves in its folder `splits`, is a split of any format but `tfrecord`, `tfds`.
        classes: class names in the order of their indices; None takes those of the recipe, or if there is none, those
            of the data.

    Returns:
        The usable images and all defects.

    Raises:
        DataError: something is missing, classes do not match, or no image is usable.
    """
    data = DataConfig(format=recipe) if isinstance(recipe, str) else recipe
    if isinstance(recipe, Config):
        data, classes = recipe.data, list(recipe.model.classes) if classes is None else classes
    lists = [split for split in splits if split.endswith(LIST) and os.path.isfile(split)]
    if not (lists or data.split.val):
        return _read(data, data_dir, splits, classes)
    whole = _read(data, data_dir, None, classes)
    parts = {name: select_listed(whole, name) for name in lists}
    if data.split.val:
        parts |= _divide(whole, data.split)
    unknown = [split for split in splits if split not in parts]
    if unknown:
        raise DataError(f"There is no split {', '.join(unknown)}; there are: {', '.join(parts)}.")
    return merge([parts[split] for split in splits])


def read_training_data(
    config: Config, data_dir: str | os.PathLike, lists_dir: str | os.PathLike
) -> tuple[ExampleSet, ExampleSet | None, dict[str, ExampleSet]]:
    """Reads the images that a recipe trains and evaluates on.

    Args:
        config: the recipe.
        data_dir: the data set.
        lists_dir: the folder of the run's split lists. If `write_split_lists` has written them, they decide, so that a
            resumed run keeps its split whatever has been added to the data since.

    Returns:
        The training set; the validation set, or None if `data.val_splits` is empty; and the parts that `data.split`
        makes, by their names, for `write_split_lists`.

    Raises:
        DataError: as `read_data`.
    """
    data, parts = config.data, {}
    if data.split.val:
        whole = _read(data, data_dir, None, config.model.classes)
        paths = {name: Path(lists_dir) / f"{name}{LIST}" for name in ("train", "val")}
        if all(path.is_file() for path in paths.values()):
            parts = {name: select_listed(whole, path) for name, path in paths.items()}
        else:
            parts = _divide(whole, data.split)

    def read(splits: Sequence[str]) -> ExampleSet:
        return merge([parts[split] for split in splits]) if parts else read_data(config, data_dir, splits)

    return read(data.train_splits), read(data.val_splits) if data.val_splits else None, parts


def write_split_lists(lists_dir: str | os.PathLike, parts: Mapping[str, ExampleSet]) -> None:
    """Writes the image ids of each part of a data set as NAME.txt, unless that exists."""
    for name, found in parts.items():
        path = Path(lists_dir) / f"{name}{LIST}"
        if not path.is_file():
            write_list(path, found)


def _divide(whole: ExampleSet, split: SplitConfig) -> dict[str, ExampleSet]:
    train, val = split_examples(whole, split.val, split.seed)
    return {"train": train, "val": val}


def _read(
    data: DataConfig, data_dir: str | os.PathLike, splits: Sequence[str] | None, classes: Sequence[str] | None
) -> ExampleSet:
    """Reads splits, or everything if they are None, and selects the classes of the recipe."""
    options = {"annotations": data.annotations, "images": data.images} if data.format == "coco" else {}
    read = READERS[data.format]
    if not data.rename and data.other_classes == "error":
        return read(data_dir, splits, classes, **options)
    found = read(data_dir, splits, None, **options)
    if data.format in LISTS_CLASSES:
        names = list(dict.fromkeys(data.rename.get(name, name) for name in found.classes))
        check_listed(classes, names, f"{os.fspath(data_dir)} after data.rename")
    return select_classes(found, classes, rename=data.rename, other_classes=data.other_classes)
