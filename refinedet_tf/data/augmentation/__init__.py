"""The training augmentation of SSD, which RefineDet uses unchanged (Liu et al. 2016, section 2.2 and appendix).

Every function is pure: randomness comes from `seed`, an integer tensor of shape [2]. Images are RGB, 0..255, and stay
uint8 until they are resized, since the original works on 8-bit images and a zoomed-out canvas is large. Boxes are
float32 `[m, 4]`, relative `(xmin, ymin, xmax, ymax)`, classes int32 `[m]`; m may be 0. Unlike the original, nothing is
encoded as JPEG again between the steps.

Expanding and cropping only choose a window. `augment` cuts the image to the final window before it changes any pixel,
so that no pixel is computed that does not show in the result.
"""

import tensorflow as tf

from refinedet_tf.config import AugmentationConfig
from refinedet_tf.data.augmentation.colors import photometric_distortion
from refinedet_tf.data.augmentation.resampling import random_resize
from refinedet_tf.data.augmentation.windows import fill, random_crop, random_expand, random_flip, visible_part, whole
from refinedet_tf.ops.resizing import Resizing, resize_bilinear


def augment(
    image: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    config: AugmentationConfig,
    resizing: Resizing,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Applies the steps that `config` enables in the paper's order: colors, expand, crop, resize, flip.

    Args:
        image: uint8 `[h, w, 3]`.
        boxes: `[m, 4]`.
        classes: `[m]`.
        config: which steps to apply.
        resizing: the size of the result, and whether it keeps the crop's aspect ratio.
        seed: integers `[2]`.

    Returns:
        The image, float32 `[height, width, 3]`, with the boxes `[k, 4]` and classes `[k]` that remain in it.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
    image = tf.convert_to_tensor(image)
    window = whole(image)
    if config.expand_max_ratio > 1:
        window, boxes = random_expand(window, boxes, config.expand_max_ratio, seeds[1])
    if config.random_crop:
        window, boxes, classes = random_crop(window, boxes, classes, seeds[2])
    visible = visible_part(image, window)
    image = image[visible[1] : visible[3], visible[0] : visible[2]]
    if config.photometric:
        image = photometric_distortion(image, seeds[0])
    window_size = tf.reverse(window[2:] - window[:2], axis=[0])
    shown = resizing.shown_size(window_size)
    if config.random_interpolation:
        image = random_resize(image, visible, window, shown, seeds[3])
    else:
        image = resize_bilinear(fill(image, visible, window), shown)
    image = resizing.pad(image)
    boxes = resizing.boxes_to_input(boxes, window_size)
    if config.flip:
        image, boxes = random_flip(image, boxes, seeds[4])
    return image, boxes, classes
