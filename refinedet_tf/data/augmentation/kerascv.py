"""Augments batches with preprocessing layers of KerasCV, in addition to the paper's steps."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from refinedet_tf.config import KerasCvLayerConfig
from refinedet_tf.errors import ConfigError, did_you_mean

BOX_FORMAT = "rel_xyxy"
# Layers that do not move boxes. Given boxes, RandAugment of KerasCV 0.9 fails inside tf.data.
IMAGE_LAYERS = (
    "AutoContrast", "ChannelShuffle", "Equalization", "Grayscale", "GridMask", "Posterization", "RandAugment",
    "RandomBrightness", "RandomChannelShift", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast",
    "RandomCutout", "RandomGaussianBlur", "RandomHue", "RandomJpegQuality", "RandomSaturation", "RandomSharpness",
    "Solarization",
)  # fmt: skip


def build_layers(
    configs: Sequence[KerasCvLayerConfig], input_size: Sequence[int], seed: int
) -> Callable[[tf.Tensor, dict[str, tf.Tensor]], tuple[tf.Tensor, dict[str, tf.Tensor]]]:
    """Returns a function for tf.data that applies layers to a batch, one after the other.

    Arguments that the pipeline determines are filled in unless given: box format, range of pixel values, `target_size`,
    `seed`. RandAugment changes colors only. The seed determines the numbers that a layer draws, but not which of the
    batches prepared in parallel gets which, so batches are not exactly repeatable.

    Args:
        configs: the layers, by their class names in `keras_cv.layers`, with arguments.
        input_size: height and width of the images in pixels.
        seed: the seed of the first layer; each further layer adds 1.

    Returns:
        `(images, targets) -> (images, targets)`, in the form of `training_pipeline`, with the same number of boxes
        as before; padding comes last.

    Raises:
        ConfigError: KerasCV is missing, a layer does not exist or cannot handle boxes, or its arguments are invalid.
    """
    layers = [_build(config, input_size, seed + index) for index, config in enumerate(configs)]

    def apply(images: tf.Tensor, targets: dict[str, tf.Tensor]) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        boxes = {"boxes": targets["boxes"], "classes": tf.cast(targets["classes"], tf.float32)}  # the types of KerasCV
        for name, layer in layers:
            if name in IMAGE_LAYERS:
                images = layer(images, training=True)
            else:
                result = layer({"images": images, "bounding_boxes": boxes}, training=True)
                images, boxes = result["images"], _padded_last(result["bounding_boxes"], targets["classes"].shape[1])
        images = tf.ensure_shape(tf.clip_by_value(tf.cast(images, tf.float32), 0.0, 255.0), [None, *input_size, 3])
        return images, {"boxes": boxes["boxes"], "classes": tf.cast(boxes["classes"], tf.int32)}

    return apply


def _padded_last(boxes: dict[str, Any], max_boxes: int) -> dict[str, tf.Tensor]:
    """Clips boxes to the image, drops those without area, and keeps the first `max_boxes` of the rest, dense."""
    dense = {
        key: value.to_tensor(-1.0) if isinstance(value, tf.RaggedTensor) else value for key, value in boxes.items()
    }
    classes = dense["classes"]
    clipped = tf.clip_by_value(dense["boxes"], 0.0, 1.0)
    real = (classes != -1) & tf.reduce_all(clipped[..., 2:] > clipped[..., :2], axis=-1)
    boxes, classes = tf.ragged.boolean_mask(clipped, real), tf.ragged.boolean_mask(classes, real)
    return {
        "boxes": boxes.to_tensor(-1.0, shape=[None, max_boxes, 4]),
        "classes": classes.to_tensor(-1.0, shape=[None, max_boxes]),
    }


def _build(config: KerasCvLayerConfig, input_size: Sequence[int], seed: int) -> tuple[str, Callable]:
    key = "data.augmentation.keras_cv"
    try:
        from keras_cv import layers
    except ImportError as error:
        raise ConfigError(f"{key} needs KerasCV, which cannot be imported: {error}.") from error
    name = config.name
    layer = getattr(layers, name, None)
    if not inspect.isclass(layer):
        hint = did_you_mean(name, [*IMAGE_LAYERS, "Mosaic", "MixUp", "JitteredResize"])
        raise ConfigError(f"{key}: keras_cv.layers has no layer {name!r}{hint}.")
    parameters = inspect.signature(layer.__init__).parameters
    if not (name in IMAGE_LAYERS or name == "MixUp" or "bounding_box_format" in parameters):
        raise ConfigError(f"{key}: {name} cannot handle boxes.")
    known = {"bounding_box_format": BOX_FORMAT, "value_range": (0, 255), "target_size": tuple(input_size), "seed": seed}
    arguments = {parameter: value for parameter, value in known.items() if parameter in parameters} | config.arguments
    if name == "RandAugment" and arguments.setdefault("geometric", False):
        raise ConfigError(f"{key}: RandAugment does not move boxes; leave out `geometric`.")
    try:
        return name, layer(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {name}: {str(error).splitlines()[0]}") from error
