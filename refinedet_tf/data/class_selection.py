"""Maps the classes of a data set to those of a model: merges classes, and leaves some out."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from refinedet_tf.data.examples import Defect, Example, ExampleSet
from refinedet_tf.errors import DataError, did_you_mean


def select_classes(
    found: ExampleSet, classes: Sequence[str] | None, *, rename: Mapping[str, str], other_classes: str
) -> ExampleSet:
    """Renames classes, and selects those of a model.

    Args:
        found: examples with all classes of the data.
        classes: the class names to select, in the order of their indices; None takes all, in the order of the data.
        rename: new names by old names; two classes with the same new name become one.
        other_classes: what happens to objects of other classes: `error`, `ignore`, which moves their boxes to
            `Example.ignored` (crowd regions are dropped), or `background`, which drops them.

    Returns:
        The examples with the selected classes; a note for each class left out.

    Raises:
        DataError: objects have other classes and `other_classes` is `error`.
    """
    names = [rename.get(name, name) for name in found.classes]
    classes = list(dict.fromkeys(names)) if classes is None else list(classes)
    objects = Counter(names[index] for example in found.examples for index in example.classes)
    others = {name: objects[name] for name in dict.fromkeys(names) if name not in classes and objects[name]}
    if others and other_classes == "error":
        listed = "; ".join(f"{name!r}{did_you_mean(name, classes)}: {count} objects" for name, count in others.items())
        raise DataError(
            f"The annotations have classes that model.classes does not list: {listed}. Listed are: "
            f"{', '.join(classes)}. Add them, or see data.rename and data.other_classes."
        )
    effect = "take no part" if other_classes == "ignore" else "are background"
    notes = [
        Defect("model.classes has others", f"objects of class {name!r} {effect}: {count}")
        for name, count in others.items()
    ]
    indices = np.array([classes.index(name) if name in classes else -1 for name in names], np.int32)
    ids = None
    if found.category_ids is not None:
        ids = [found.category_ids[names.index(name)] if name in names else 0 for name in classes]
    examples = [_select(example, indices, keep_others=other_classes == "ignore") for example in found.examples]
    return ExampleSet(examples, classes, found.defects, ids, [*found.notes, *notes])


def _select(example: Example, indices: np.ndarray, *, keep_others: bool) -> Example:
    classes = indices[example.classes]
    selected = classes >= 0
    others = example.boxes[~selected & ~example.crowd] if keep_others else example.boxes[:0]
    return dataclasses.replace(
        example,
        boxes=example.boxes[selected],
        classes=classes[selected],
        difficult=example.difficult[selected],
        crowd=example.crowd[selected],
        areas=None if example.areas is None else example.areas[selected],
        ignored=np.concatenate([example.ignored, others]),
    )
