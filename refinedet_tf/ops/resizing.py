"""Resizing of images to the input size of a model, and of boxes between image and input.

`warp` fills the input and ignores the aspect ratio of the image. `letterbox` keeps it: the image is centered in the
input, as large as fits, and the rest has the mean color.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

MEAN_COLOR = (123, 117, 104)  # mean of ImageNet, RGB; pads images


@dataclass(frozen=True)
class Resizing:
    """The input size of a model, and how images are resized to it.

    Attributes:
        height: height of the input in pixels.
        width: width of the input in pixels.
        mode: `warp` or `letterbox`.
    """

    height: int
    width: int
    mode: str = "warp"

    @property
    def size(self) -> tuple[int, int]:
        """Returns height and width of the input in pixels."""
        return self.height, self.width

    def resize(self, images: tf.Tensor) -> tf.Tensor:
        """Resizes images to the input size: bilinear, half-pixel centers, no antialiasing.

        `warp` is what the released RefineDet test scripts do. Training, evaluation, detection and serving all use this
        function.

        Args:
            images: `[h, w, 3]` or `[b, h, w, 3]`, any real type, 0..255.

        Returns:
            float32 `[height, width, 3]` or `[b, height, width, 3]`, 0..255.
        """
        return self.pad(resize_bilinear(images, self.shown_size(tf.shape(images)[-3:-1])))

    def shown_size(self, image_size: tf.Tensor) -> tf.Tensor:
        """Returns height and width of the part of the input that shows the image.

        Args:
            image_size: height and width of the image in pixels, int32 `[..., 2]`.

        Returns:
            int32 `[2]` or `[..., 2]`: for `warp` the input size, for `letterbox` the largest size with the image's
            aspect ratio that fits, each side rounded to the nearest pixel.
        """
        size = tf.constant(self.size, tf.int32)
        if self.mode == "warp":
            return size
        # height * input width / width, and vice versa; the longer side is clipped to the input. Integer arithmetic, so
        # that every client computes the same.
        image_size = tf.convert_to_tensor(image_size, tf.int32)
        other = tf.reverse(image_size, axis=[-1])
        return tf.clip_by_value((2 * image_size * tf.reverse(size, axis=[0]) + other) // (2 * other), 1, size)

    def pad(self, images: tf.Tensor) -> tf.Tensor:
        """Centers images of their `shown_size` on a canvas of the mean color.

        Args:
            images: float32 `[..., h, w, 3]`. If a margin is odd, its right or lower part is larger.

        Returns:
            float32 `[..., height, width, 3]`; for `warp` the images themselves.
        """
        if self.mode == "warp":
            return images
        shown = tf.shape(images)[-3:-1]
        top, left = tf.unstack((self.size - shown) // 2)
        padded = tf.image.pad_to_bounding_box(images, top, left, *self.size)
        is_shown = tf.image.pad_to_bounding_box(tf.ones([*tf.unstack(shown), 1]), top, left, *self.size) > 0
        return tf.where(is_shown, padded, tf.constant(MEAN_COLOR, tf.float32))

    def boxes_to_input(self, boxes: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
        """Converts boxes relative to images into boxes relative to the input that shows them.

        Args:
            boxes: float32 `[..., n, 4]`, (xmin, ymin, xmax, ymax).
            image_size: height and width of the images in pixels, int32 `[2]`, or `[..., 2]` for one size each.

        Returns:
            float32 `[..., n, 4]`.
        """
        if self.mode == "warp":
            return boxes
        corner, extent = self._shown_part(image_size)
        return boxes * extent + corner

    def boxes_to_image(self, boxes: tf.Tensor, image_size: tf.Tensor) -> tf.Tensor:
        """Inverts `boxes_to_input`; boxes in the margin end up outside 0..1."""
        if self.mode == "warp":
            return boxes
        corner, extent = self._shown_part(image_size)
        return (boxes - corner) / extent

    def _shown_part(self, image_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns corner and size of the shown part, relative to the input, as (x, y, x, y), `[..., 1, 4]`."""
        shown = self.shown_size(image_size)
        corner = (self.size - shown) // 2
        relative = [tf.cast(pixels, tf.float32) / tf.constant(self.size, tf.float32) for pixels in (corner, shown)]
        return tuple(tf.expand_dims(tf.gather(part, [1, 0, 1, 0], axis=-1), -2) for part in relative)


def resize_bilinear(images: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """Resizes `[..., h, w, 3]` of any real type to float32: bilinear, half-pixel centers, no antialiasing."""
    images = tf.convert_to_tensor(images)
    if images.shape.rank == 4:  # may be on a GPU, whose kernel reads floats only
        images = tf.cast(images, tf.float32)
    # A single image is resized as it is: on the CPU, where a copy in float32 would take four times its memory.
    return tf.cast(tf.image.resize(images, size, method="bilinear", antialias=False), tf.float32)
