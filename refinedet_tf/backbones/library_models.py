"""What the backbones of KerasCV and KerasHub share."""

import re
from collections import Counter

from tensorflow import keras

from refinedet_tf.stacks import rename

KEY = "model.backbone.preset_or_class"


def name_for_good(network: keras.Model) -> None:
    """Renames the layers that a library leaves to Keras, which numbers them over all models of the process.

    Weight files go by names, so `squeeze_and_excite2d_8` must not depend on what was built before.
    """
    counts = Counter()
    for layer in network.layers:
        kind = re.sub(r"_\d+$", "", layer.name)
        if layer.weights and kind.replace("_", "") == type(layer).__name__.lower():
            rename(layer, f"{kind}_{counts[kind]}")
            counts[kind] += 1
