"""What the detector is built of: preprocessing, L2 normalisation, transfer connection blocks and prediction heads."""

from collections.abc import Callable

import tensorflow as tf
from tensorflow import keras

ANCHORS_PER_CELL = 3
BATCH_NORM_MOMENTUM = 0.99
BATCH_NORM_EPSILON = 1e-3


@keras.utils.register_keras_serializable("refinedet_tf")
class Preprocessing(keras.layers.Layer):
    """Turns RGB images in 0..255 into what a backbone was trained on.

    Input and output `[b, h, w, 3]`. Modes: `caffe` is BGR minus the mean (104, 117, 123), as the original VGG-16 and
    ResNet-101; `tf` is RGB scaled to -1..1, as the MobileNets of keras.applications.
    """

    def __init__(self, mode: str, **kwargs: object):
        # Pixels of a half-precision image would lose their last bits.
        super().__init__(**{**kwargs, "dtype": "float32"})
        if mode not in ("caffe", "tf"):
            raise ValueError(f"Preprocessing has the modes 'caffe' and 'tf', not {mode!r}.")
        self.mode = mode

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Normalises images `[b, h, w, 3]`."""
        if self.mode == "caffe":
            return tf.reverse(images, axis=[-1]) - tf.constant([104.0, 117.0, 123.0])
        return images / 127.5 - 1.0

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The shape stays as it is."""
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "mode": self.mode}


@keras.utils.register_keras_serializable("refinedet_tf")
class L2Normalization(keras.layers.Layer):
    """Scales the channels at each position to a learned length (ParseNet; paper, section 3.4).

    `y_c = scale_c x_c / sqrt(sum_k x_k^2 + 1e-10)`. Input and output `[b, h, w, c]`.
    """

    def __init__(self, initial_scale: float, **kwargs: object):
        super().__init__(**kwargs)
        self.initial_scale = initial_scale

    def build(self, input_shape: tuple) -> None:
        """Adds the learned scale `[c]`."""
        self.scale = self.add_weight(
            name="scale",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_scale),
            trainable=True,
        )

    def call(self, features: tf.Tensor) -> tf.Tensor:
        """Normalises feature maps `[b, h, w, c]`."""
        # 512 squares do not fit a half-precision sum, nor does the epsilon.
        values = tf.cast(features, tf.float32)
        norm = tf.math.rsqrt(tf.reduce_sum(tf.square(values), axis=-1, keepdims=True) + 1e-10)
        return tf.cast(values * norm, features.dtype) * tf.cast(self.scale, features.dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The shape stays as it is."""
        return input_shape

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "initial_scale": self.initial_scale}


def xavier() -> keras.initializers.Initializer:
    """Caffe's Xavier rule, uniform in +-sqrt(3 / fan_in); Keras's GlorotUniform has another bound."""
    return keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="uniform")


def conv3x3(filters: int, name: str, *, separable: bool = False, batch_norm: bool = False) -> Callable:
    """A 3x3 convolution that keeps the map's size, without activation.

    Args:
        filters: channels of the output.
        name: name of the layer; parts of a compound one append `_depthwise`, `_pointwise`, `_bn`.
        separable: depthwise convolution, batch normalisation, ReLU, then a 1x1 convolution.
        batch_norm: batch normalisation after it, which replaces the bias.

    Returns:
        A function from feature maps `[b, h, w, c]` to `[b, h, w, filters]`.
    """

    def apply(x: tf.Tensor) -> tf.Tensor:
        if separable:
            depthwise = keras.layers.DepthwiseConv2D(
                3, padding="same", use_bias=False, depthwise_initializer="he_normal", name=f"{name}_depthwise"
            )
            x = relu(f"{name}_depthwise_relu")(batch_normalization(f"{name}_depthwise_bn")(depthwise(x)))
        x = keras.layers.Conv2D(
            filters,
            1 if separable else 3,
            padding="same",
            use_bias=not batch_norm,
            kernel_initializer=xavier(),
            name=f"{name}_pointwise" if separable else name,
        )(x)
        return batch_normalization(f"{name}_bn")(x) if batch_norm else x

    return apply


def batch_normalization(name: str) -> keras.layers.Layer:
    """Batch normalisation as in the layers that this project adds to a backbone."""
    return keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=name)


def relu(name: str) -> keras.layers.Layer:
    """A named rectifier."""
    return keras.layers.ReLU(name=name)


def transfer_connection_block(
    features: tf.Tensor, above: tf.Tensor | None, level: int, *, width: int, separable: bool, batch_norm: bool
) -> tf.Tensor:
    """One transfer connection block (paper, figure 2): a source map, joined by the block above, becomes `P{level}`.

    Layers carry the original names: `TL5_1`, `TL5_2`, `P6-up`, `Elt5`, `P5`.

    Args:
        features: `[b, h, w, c]`, the same map that the ARM's heads see.
        above: `P{level + 1}`, `[b, h / 2, w / 2, width]`, or None on the top level.
        level: 3 to 6, for strides 8 to 64.
        width: channels of the result.
        separable: use depthwise-separable 3x3 convolutions.
        batch_norm: normalise after every convolution and deconvolution.

    Returns:
        `P{level}`, `[b, h, w, width]`, rectified.
    """
    conv = {"separable": separable, "batch_norm": batch_norm}
    x = relu(f"TL{level}_1_relu")(conv3x3(width, f"TL{level}_1", **conv)(features))
    x = conv3x3(width, f"TL{level}_2", **conv)(x)
    if above is not None:
        up = keras.layers.Conv2DTranspose(
            width, 2, strides=2, use_bias=not batch_norm, kernel_initializer=xavier(), name=f"P{level + 1}-up"
        )(above)
        if batch_norm:
            up = batch_normalization(f"P{level + 1}-up_bn")(up)
        x = keras.layers.Add(name=f"Elt{level}")([x, up])
    x = relu(f"Elt{level}_relu" if above is not None else f"TL{level}_2_relu")(x)
    return relu(f"P{level}_relu")(conv3x3(width, f"P{level}", **conv)(x))


def prediction_head(features: tf.Tensor, values: int, name: str, *, separable: bool) -> tf.Tensor:
    """A head: `values` numbers for each of the three anchors of every cell.

    Args:
        features: `[b, h, w, c]`.
        values: 4 for offsets, 2 for objectness, 1 + c for classes.
        name: name of the convolution.
        separable: use a depthwise-separable convolution.

    Returns:
        `[b, h * w * 3, values]`: rows, then columns, then anchors.
    """
    x = conv3x3(ANCHORS_PER_CELL * values, name, separable=separable)(features)
    return keras.layers.Reshape((-1, values), name=f"{name}_reshape")(x)


def join_levels(levels: list[tf.Tensor], name: str) -> tf.Tensor:
    """Predictions of all levels behind one another, `[b, n, values]`, float32 under every precision policy."""
    return keras.layers.Concatenate(axis=1, dtype="float32", name=name)(levels)
