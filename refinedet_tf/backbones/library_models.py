"""What the backbones of KerasCV and KerasHub share."""

import re
from collections import Counter
from typing import Any

from tensorflow import keras

KEY = "model.backbone.preset_or_class"


def name_for_good(network: keras.Model) -> None:
    """Renames the layers that a library leaves to Keras, which numbers them over all models of the process.

    Weight files go by names, so `squeeze_and_excite2d_8` must not depend on what was built before.
    """
    counts = Counter()
    for layer in network.layers:
        kind = re.sub(r"_\d+$", "", layer.name)
        if layer.weights and kind.replace("_", "") == type(layer).__name__.lower():
            # Keras 2 keeps it in `_name`.
            setattr(layer, "name" if "name" in vars(layer) else "_name", f"{kind}_{counts[kind]}")
            counts[kind] += 1


def plain(value: Any) -> Any:
    """Returns a value without the wrappers that Keras 2 puts around the lists of a model."""
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value
