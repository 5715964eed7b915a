"""Lets `keras.models.load_model` open a saved RefineDet after `import refinedet_tf` alone, which imports no TensorFlow.

Keras finds the classes that a .keras file names in a table. As soon as Keras is imported, this module puts an entry for
RefineDet there that imports the modules with all registered classes when it is first used.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt

_NAME = "refinedet_tf>RefineDet"
# They register everything that a .keras file of this library can name.
_MODULES = ("refinedet_tf.model", "refinedet_tf.training.optimizers")


class _RefineDetOnDemand:
    """Stands for RefineDet until that is imported and takes its place in Keras's table."""

    @classmethod
    def from_config(cls, config: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a RefineDet."""
        for name in _MODULES:
            import_module(name)
        return import_module("refinedet_tf.model").RefineDet.from_config(config, **kwargs)


def register_on_demand() -> None:
    """Adds the entry now if Keras has been imported, otherwise when it is."""
    wrapt.register_post_import_hook(_register, "keras")


def _register(keras: ModuleType) -> None:
    keras.utils.get_custom_objects().setdefault(_NAME, _RefineDetOnDemand)
