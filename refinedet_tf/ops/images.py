"""Image files to tensors, how images get to the input size of a model, and boxes from one to the other.

There are two ways. `warp` fills the input whatever the aspect ratio of the image. `letterbox` keeps the aspect ratio:
the image lies in the middle of the input, as large as fits, and the rest has the mean colour.
"""

from collections.abc import Sequence

import tensorflow as tf

MEAN_COLOUR = (123, 117, 104)  # of ImageNet, RGB; surrounds images that do not fill their canvas


def decode(contents: tf.Tensor) -> tf.Tensor:
    """Decodes the bytes of one image file.

    Args:
        contents: string scalar with a JPEG, PNG, GIF (its first frame) or BMP file; grey and CMYK images become RGB. An
            EXIF orientation is ignored: boxes belong to the stored pixels.

    Returns:
        RGB, uint8 `[height, width, 3]`, 0..255.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are no complete image.
    """
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def resize(images: tf.Tensor, size: Sequence[int], mode: str = "warp") -> tf.Tensor:
    """Resizes images to one size: bilinear, half-pixel centres, no antialiasing.

    With `warp` this is what the released RefineDet test scripts do to an image; evaluation, detection and serving all
    come here.

    Args:
        images: `[height, width, 3]` or `[batch, height, width, 3]`, any real type, 0..255.
        size: height and width to make, in pixels.
        mode: `warp` or `letterbox`.

    Returns:
        float32 with that size and otherwise the shape of `images`, 0..255.
    """
    images = tf.cast(images, tf.float32)
    shown = shown_size(tf.shape(images)[-3:-1], size, mode)
    return pad(tf.image.resize(images, shown, method="bilinear", antialias=False), size, mode)


def shown_size(image_size: tf.Tensor, size: Sequence[int], mode: str) -> tf.Tensor:
    """Height and width of the part of the input that shows the image.

    Args:
        image_size: height and width of the image in pixels, int32 `[..., 2]`.
        size: height and width of the input in pixels.
        mode: with `warp` that part is all of it, with `letterbox` the largest with the image's aspect ratio, each side
            rounded to the next pixel.

    Returns:
        int32 `[2]` or `[..., 2]`.
    """
    size = tf.convert_to_tensor(size, tf.int32)
    if mode == "warp":
        return size
    # height * input width / width and the converse: of the two sides, the one that this makes too long fits exactly.
    # Whole numbers, so that every program that does this agrees.
    image_size = tf.convert_to_tensor(image_size, tf.int32)
    other = tf.reverse(image_size, axis=[-1])
    return tf.clip_by_value((2 * image_size * tf.reverse(size, axis=[0]) + other) // (2 * other), 1, size)


def pad(images: tf.Tensor, size: Sequence[int], mode: str) -> tf.Tensor:
    """With `letterbox`, puts images of their `shown_size` in the middle of a canvas of the mean colour.

    Args:
        images: float32 `[..., height, width, 3]`.
        size: height and width of the canvas, at least those of the images. Where a difference is odd, the right or
            lower margin is the larger one.
        mode: with `warp` the images have that size already.

    Returns:
        float32 `[..., *size, 3]`.
    """
    if mode == "warp":
        return images
    shown = tf.shape(images)[-3:-1]
    top, left = tf.unstack((size - shown) // 2)
    padded = tf.image.pad_to_bounding_box(images, top, left, *size)
    is_shown = tf.image.pad_to_bounding_box(tf.ones([*tf.unstack(shown), 1]), top, left, *size) > 0
    return tf.where(is_shown, padded, tf.constant(MEAN_COLOUR, tf.float32))


def boxes_to_input(boxes: tf.Tensor, image_size: tf.Tensor, size: Sequence[int], mode: str) -> tf.Tensor:
    """Boxes relative to images as boxes relative to the model's input that shows them.

    Args:
        boxes: float32 `[..., n, 4]`, `(xmin, ymin, xmax, ymax)`.
        image_size: height and width of the images in pixels, int32 `[2]`, or `[..., 2]` if each has its own.
        size: height and width of the input in pixels.
        mode: `warp` or `letterbox`.

    Returns:
        float32 `[..., n, 4]`.
    """
    if mode == "warp":
        return boxes
    corner, extent = _shown_part(image_size, size, mode)
    return boxes * extent + corner


def boxes_to_image(boxes: tf.Tensor, image_size: tf.Tensor, size: Sequence[int], mode: str) -> tf.Tensor:
    """The inverse of `boxes_to_input`, with the same arguments; what lies in the margin comes to lie outside 0..1."""
    if mode == "warp":
        return boxes
    corner, extent = _shown_part(image_size, size, mode)
    return (boxes - corner) / extent


def _shown_part(image_size: tf.Tensor, size: Sequence[int], mode: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Upper left corner and size of the part of the input that shows an image, relative (x, y, x, y), `[..., 1, 4]`."""
    shown = shown_size(image_size, size, mode)
    corner = (size - shown) // 2
    relative = [tf.cast(pixels, tf.float32) / tf.constant(size, tf.float32) for pixels in (corner, shown)]
    return tuple(tf.gather(part, [1, 0, 1, 0], axis=-1)[..., tf.newaxis, :] for part in relative)
