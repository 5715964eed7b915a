"""Layers and blocks: preprocessing, L2 normalization, transfer connection blocks and prediction heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import PREPROCESSING_MODES

ANCHORS_PER_CELL = 3
# Of red, green and blue in 0..1, as torchvision's.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
# Inner and outer width of the residual block before a head.
HEAD_BLOCK_CHANNELS = (256, 1024)


@keras.utils.register_keras_serializable("refinedet_tf")
class Preprocessing(keras.layers.Layer):
    """Converts RGB images in 0..255 to the input that a backbone was trained on.

    Input and output are `[b, h, w, 3]`. Modes: `caffe` is BGR minus the mean (104, 117, 123), as for the original
    VGG-16 and ResNet-101; `tf` is RGB scaled to -1..1, as for the MobileNets of keras.applications; `torch` is RGB in
    0..1 minus ImageNet's mean, divided by its standard deviation, as in torchvision; `lite` is (RGB - 127) / 128, as
    for EfficientNet-Lite; `none` changes nothing.
    """

    def __init__(self, mode: str, **kwargs: object):
        # In half precision, pixels would lose their last bits.
        super().__init__(**{**kwargs, "dtype": "float32"})
        if mode not in PREPROCESSING_MODES:
            raise ValueError(f"Preprocessing has the modes {', '.join(PREPROCESSING_MODES)}, not {mode!r}.")
        self.mode = mode

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Normalizes images `[b, h, w, 3]`."""
        if self.mode == "caffe":
            return tf.reverse(images, axis=[-1]) - tf.constant([104.0, 117.0, 123.0])
        if self.mode == "tf":
            return images / 127.5 - 1.0
        if self.mode == "lite":
            return (images - 127.0) / 128.0
        if self.mode == "torch":
            return (images / 255.0 - tf.constant(IMAGENET_MEAN)) / tf.constant(IMAGENET_DEVIATION)
        return images

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the input shape."""
        return input_shape

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
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
        """Creates the learned scale, `[c]`."""
        self.scale = self.add_weight(
            name="scale",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_scale),
            trainable=True,
        )

    def call(self, features: tf.Tensor) -> tf.Tensor:
        """Normalizes feature maps `[b, h, w, c]`."""
        # Neither the sum of 512 squares nor the epsilon fits half precision.
        values = tf.cast(features, tf.float32)
        norm = tf.math.rsqrt(tf.reduce_sum(tf.square(values), axis=-1, keepdims=True) + 1e-10)
        return tf.cast(values * norm, features.dtype) * tf.cast(self.scale, features.dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the input shape."""
        return input_shape

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "initial_scale": self.initial_scale}


def gaussian() -> keras.initializers.Initializer:
    """Returns N(0, 0.01), which the ResNet recipes use for convolutions followed by batch normalization."""
    return keras.initializers.RandomNormal(stddev=0.01)


def xavier() -> keras.initializers.Initializer:
    """Returns Caffe's Xavier rule, uniform in +-sqrt(3 / fan_in); Keras's GlorotUniform has another bound."""
    return keras.initializers.VarianceScaling(scale=1.0, mode="fan_in", distribution="uniform")


@dataclass(frozen=True)
class Normalization:
    """Settings of batch normalization on top of a backbone, which follow the backbone's own.

    Attributes:
        momentum: weight of the old value in each step of the moving averages.
        epsilon: added to the variance.
        kernel_initializer: returns the initializer of the convolutions before it.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    kernel_initializer: Callable[[], keras.initializers.Initializer] = xavier


DEFAULT_NORMALIZATION = Normalization()


def conv3x3(
    filters: int,
    name: str,
    *,
    separable: bool = False,
    batch_norm: bool = False,
    normalization: Normalization = DEFAULT_NORMALIZATION,
    initial_bias: float | Sequence[float] = 0.0,
) -> Callable:
    """Returns a 3x3 convolution that keeps the size of the map, without activation.

    Args:
        filters: channels of the output.
        name: name of the layer; the parts of a compound layer append `_depthwise`, `_pointwise`, `_bn`.
        separable: use a depthwise convolution, batch normalization, ReLU, then a 1x1 convolution.
        batch_norm: follow it with batch normalization, which replaces the bias.
        normalization: settings of batch normalization.
        initial_bias: one value, or one for each filter.

    Returns:
        A function from feature maps `[b, h, w, c]` to `[b, h, w, filters]`.
    """

    def apply(x: tf.Tensor) -> tf.Tensor:
        if separable:
            depthwise = keras.layers.DepthwiseConv2D(
                3, padding="same", use_bias=False, depthwise_initializer="he_normal", name=f"{name}_depthwise"
            )
            x = batch_normalization(f"{name}_depthwise_bn", normalization)(depthwise(x))
            x = relu(f"{name}_depthwise_relu")(x)
        x = keras.layers.Conv2D(
            filters,
            1 if separable else 3,
            padding="same",
            use_bias=not batch_norm,
            kernel_initializer=normalization.kernel_initializer() if batch_norm else xavier(),
            bias_initializer=keras.initializers.Constant(initial_bias),
            name=f"{name}_pointwise" if separable else name,
        )(x)
        return batch_normalization(f"{name}_bn", normalization)(x) if batch_norm else x

    return apply


def batch_normalization(name: str, normalization: Normalization = DEFAULT_NORMALIZATION) -> keras.layers.Layer:
    """Returns a named batch normalization."""
    return keras.layers.BatchNormalization(momentum=normalization.momentum, epsilon=normalization.epsilon, name=name)


def relu(name: str) -> keras.layers.Layer:
    """Returns a named ReLU."""
    return keras.layers.ReLU(name=name)


def bottleneck_block(
    x: tf.Tensor,
    channels: tuple[int, int],
    *,
    conv_name: str,
    bn_name: str,
    relu_name: str,
    stride: int = 1,
    projection: bool = True,
    normalization: Normalization = DEFAULT_NORMALIZATION,
) -> tf.Tensor:
    """Applies the bottleneck residual block of ResNet v1 (He et al., CVPR 2016), with the stride on the first 1x1.

    Args:
        x: `[b, h, w, c]`.
        channels: channels of the inner convolutions and of the result.
        conv_name: names of the convolutions; `{}` stands for `branch1`, `branch2a`, `branch2b` or `branch2c`.
        bn_name: names of their batch normalizations, likewise.
        relu_name: name of the ReLU after the sum; the inner ones are named after their convolutions.
        stride: stride of `branch2a` and of the projection.
        projection: whether the shortcut is a 1x1 convolution, `branch1`, instead of `x` itself.
        normalization: settings of batch normalization.

    Returns:
        `[b, h / stride, w / stride, channels[1]]`, after ReLU.
    """

    def conv_bn(x: tf.Tensor, filters: int, kernel: int, branch: str, strides: int = 1) -> tf.Tensor:
        x = keras.layers.Conv2D(
            filters,
            kernel,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer=normalization.kernel_initializer(),
            name=conv_name.format(branch),
        )(x)
        return batch_normalization(bn_name.format(branch), normalization)(x)

    inner, outer = channels
    shortcut = conv_bn(x, outer, 1, "branch1", stride) if projection else x
    x = relu(f"{conv_name.format('branch2a')}_relu")(conv_bn(x, inner, 1, "branch2a", stride))
    x = relu(f"{conv_name.format('branch2b')}_relu")(conv_bn(x, inner, 3, "branch2b"))
    x = conv_bn(x, outer, 1, "branch2c")
    x = keras.layers.Add(name=relu_name.removesuffix("_relu"))([shortcut, x])
    return relu(relu_name)(x)


def transfer_connection_block(
    features: tf.Tensor,
    above: tf.Tensor | None,
    level: int,
    *,
    width: int,
    separable: bool,
    batch_norm: bool,
    upsampling: str = "deconvolution",
    normalization: Normalization = DEFAULT_NORMALIZATION,
) -> tf.Tensor:
    """Applies a transfer connection block (paper, figure 2), which adds the block above to a feature map.

    Layers have the original names: `TL5_1`, `TL5_2`, `P6-up`, `Elt5`, `P5`.

    Args:
        features: `[b, h, w, c]`, the map that the ARM's heads use.
        above: `P{level + 1}`, `[b, h / 2, w / 2, width]`, or None on the top level.
        level: 3 to 6, for strides 8 to 64.
        width: channels of the result.
        separable: use depthwise-separable 3x3 convolutions.
        batch_norm: normalize after each convolution and deconvolution.
        upsampling: how the block above is doubled: `deconvolution` (2x2, stride 2), or `resize`, which repeats each
            value and has no parameters.
        normalization: settings of batch normalization.

    Returns:
        `P{level}`, `[b, h, w, width]`, after ReLU.
    """
    conv = {"separable": separable, "batch_norm": batch_norm, "normalization": normalization}
    x = relu(f"TL{level}_1_relu")(conv3x3(width, f"TL{level}_1", **conv)(features))
    x = conv3x3(width, f"TL{level}_2", **conv)(x)
    if above is not None:
        up = _upsample(above, width, f"P{level + 1}-up", upsampling, batch_norm, normalization)
        x = keras.layers.Add(name=f"Elt{level}")([x, up])
    x = relu(f"Elt{level}_relu" if above is not None else f"TL{level}_2_relu")(x)
    return relu(f"P{level}_relu")(conv3x3(width, f"P{level}", **conv)(x))


def _upsample(
    x: tf.Tensor, width: int, name: str, upsampling: str, batch_norm: bool, normalization: Normalization
) -> tf.Tensor:
    if upsampling == "resize":
        return keras.layers.UpSampling2D(2, interpolation="nearest", name=name)(x)
    initializer = normalization.kernel_initializer() if batch_norm else xavier()
    x = keras.layers.Conv2DTranspose(
        width, 2, strides=2, use_bias=not batch_norm, kernel_initializer=initializer, name=name
    )(x)
    return batch_normalization(f"{name}_bn", normalization)(x) if batch_norm else x


def head_block(features: tf.Tensor, name: str, normalization: Normalization = DEFAULT_NORMALIZATION) -> tf.Tensor:
    """Applies the residual block before the heads of one level and module, as in the released ResNet-101 models.

    Args:
        features: `[b, h, w, c]`.
        name: module and level, such as `arm3`; convolutions are named `arm3_inter_branch1` and so on.
        normalization: settings of batch normalization.

    Returns:
        `[b, h, w, 1024]`, after ReLU.
    """
    return bottleneck_block(
        features,
        HEAD_BLOCK_CHANNELS,
        conv_name=f"{name}_inter_{{}}",
        bn_name=f"{name}_inter_{{}}_bn",
        relu_name=f"{name}_inter_relu",
        normalization=normalization,
    )


@keras.utils.register_keras_serializable("refinedet_tf")
class ZeroOffsets(keras.layers.Layer):
    """Returns zero offsets `[b, n, 4]`, which move no anchor, for predictions `[b, n, outputs]`."""

    def call(self, predictions: tf.Tensor) -> tf.Tensor:
        """Returns four zeros for each anchor."""
        return tf.repeat(tf.zeros_like(predictions[..., :1]), 4, axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape with four values for each anchor."""
        return (*input_shape[:-1], 4)


def prediction_head(
    features: tf.Tensor, outputs: int, name: str, *, separable: bool, initial_bias: Sequence[float] = (0.0,)
) -> tf.Tensor:
    """Applies a head, with `outputs` numbers for each of the three anchors of every cell.

    Args:
        features: `[b, h, w, c]`.
        outputs: 4 for offsets, 2 for objectness, 1 + c for classes.
        name: name of the convolution.
        separable: use a depthwise-separable convolution.
        initial_bias: one value, or one for each output of an anchor.

    Returns:
        `[b, h * w * 3, outputs]`: rows, then columns, then anchors.
    """
    filters = ANCHORS_PER_CELL * outputs
    bias = list(initial_bias) * (filters // len(initial_bias))
    x = conv3x3(filters, name, separable=separable, initial_bias=bias)(features)
    return keras.layers.Reshape((-1, outputs), name=f"{name}_reshape")(x)


def join_levels(levels: list[tf.Tensor], name: str) -> tf.Tensor:
    """Concatenates the predictions of all levels, `[b, n, outputs]`, float32 under every precision policy."""
    return keras.layers.Concatenate(axis=1, dtype="float32", name=name)(levels)
