"""Divides a data set without split lists into images to train on and images to evaluate on."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refinedet_tf.data.examples import Defect, ExampleSet
from refinedet_tf.errors import DataError


def split_examples(found: ExampleSet, share: float, seed: int) -> tuple[ExampleSet, ExampleSet]:
    """Divides examples at random, class by class, so that both parts have the classes in the same proportion.

    The rarest class comes first: of its images that no rarer class has assigned, as many go to the second part as it
    needs to have its share of the images with this class. Images without objects come last.

    Args:
        found: at least two examples.
        share: the part of the images to evaluate on, between 0 and 1.
        seed: the random seed; the same images and seed give the same parts.

    Returns:
        The examples to train on, with all defects and notes, and those to evaluate on; at least one each.

    Raises:
        DataError: there is only one example.
    """
    count = len(found)
    if count < 2:
        raise DataError("One image cannot be divided into training and validation images.")
    # The order of the files must not matter: they are listed differently on different systems.
    order = np.array(sorted(range(count), key=lambda index: found.examples[index].image_id))
    order = np.random.default_rng(seed).permutation(order)
    present = [set(example.classes.tolist()) for example in found.examples]
    frequency = Counter(label for labels in present for label in labels)
    is_assigned, is_val = np.zeros(count, bool), np.zeros(count, bool)

    def assign(members: Sequence[int]) -> None:
        wanted = round(share * len(members)) - int(is_val[members].sum())
        free = [index for index in members if not is_assigned[index]]
        is_val[free[: max(wanted, 0)]] = True
        is_assigned[free] = True

    for label, _ in sorted(frequency.items(), key=lambda item: (item[1], item[0])):
        assign([index for index in order if label in present[index]])
    assign([index for index in order if not present[index]])
    if is_val.all() or not is_val.any():
        is_val[order[0]] = not is_val[order[0]]
    parts = [[found.examples[index] for index in np.flatnonzero(chosen)] for chosen in (~is_val, is_val)]
    return dataclasses.replace(found, examples=parts[0]), dataclasses.replace(
        found, examples=parts[1], defects=[], notes=[]
    )


def write_list(path: str | os.PathLike, found: ExampleSet) -> None:
    """Writes the image ids of a set, one a line, as `select_listed` reads them; makes the folder if missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{example.image_id}\n" for example in found.examples)
    Path(path).write_text(text, encoding="utf-8")


def select_listed(found: ExampleSet, path: str | os.PathLike) -> ExampleSet:
    """Selects the examples whose image ids a list names, in its order.

    Raises:
        DataError: no listed image is among the examples.
    """
    text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    image_ids = dict.fromkeys(filter(None, map(str.strip, text.splitlines())))
    known = {example.image_id: example for example in found.examples}
    examples = [known[image_id] for image_id in image_ids if image_id in known]
    if not examples:
        raise DataError(f"The data set has none of the {len(image_ids)} images that {path} lists.")
    missing = [
        Defect(os.fspath(path), f"listed image is missing or unreadable, skipped: {image_id}")
        for image_id in image_ids
        if image_id not in known
    ]
    return dataclasses.replace(found, examples=examples, defects=[*found.defects, *missing])
