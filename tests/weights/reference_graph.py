"""RefineDet's four outputs in plain functions, straight from the tables of the Caffe networks.

Nothing here is shared with the library: arrays are `[channels, rows, columns]`, weights are Caffe's, by its names and
in its layout.
"""

import numpy as np
import tensorflow as tf

MEAN_BGR = (104, 117, 123)


def to_bgr(image):
    """RGB rows, 0..255, as the Caffe networks see them."""
    return image[:, :, ::-1].transpose(2, 0, 1) - np.reshape(MEAN_BGR, (3, 1, 1)).astype(np.float32)


def to_rgb(image):
    """As the network of the PyTorch port sees them."""
    return image.transpose(2, 0, 1) - np.reshape(MEAN_BGR[::-1], (3, 1, 1)).astype(np.float32)


def conv(x, blobs, stride=1, pad=0, dilation=1):
    """TensorFlow's convolution, because NumPy's take minutes; `test_reference_graph` checks it against plain loops."""
    result = tf.nn.conv2d(
        x.transpose(1, 2, 0)[None],
        blobs[0].transpose(2, 3, 1, 0),
        stride,
        [[0, 0], [pad, pad], [pad, pad], [0, 0]],
        dilations=dilation,
    )
    result = result[0].numpy().transpose(2, 0, 1)
    return result + blobs[1][:, None, None] if len(blobs) > 1 else result


def deconv(x, blobs):
    """2x2, stride 2: every value becomes four, without overlap."""
    weights = blobs[0]  # (in, out, 2, 2)
    result = np.zeros((weights.shape[1], 2 * x.shape[1], 2 * x.shape[2]), np.float32)
    for i in range(2):
        for j in range(2):
            result[:, i::2, j::2] = np.einsum("io,iyx->oyx", weights[:, :, i, j], x, optimize=True)
    return result + blobs[1][:, None, None] if len(blobs) > 1 else result


def max_pool(x, size):
    """Stride 2, no padding, the size rounded up: the last window may hang over the edge."""
    rows, columns = -(-(x.shape[1] - size) // 2) + 1, -(-(x.shape[2] - size) // 2) + 1
    x = np.pad(x, ((0, 0), (0, size), (0, size)), constant_values=-np.inf)
    parts = [x[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i in range(size) for j in range(size)]
    return np.max(parts, axis=0)


def relu(x):
    return np.maximum(x, 0)


def l2_norm(x, blobs):
    return blobs[0][:, None, None] * x / np.sqrt((x**2).sum(axis=0, keepdims=True) + 1e-10)


def batch_norm(x, statistics, affine):
    mean, variance, factor = statistics
    mean, variance = (mean / factor, variance / factor) if factor else (0 * mean, 0 * variance)
    gamma, beta = affine
    x = (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5)
    return gamma[:, None, None] * x + beta[:, None, None]


def flatten(maps, values):
    """Caffe's Permute to rows, columns, channels, Flatten, and Concat over the levels; then a row for each anchor."""
    return np.concatenate([one.transpose(1, 2, 0).ravel() for one in maps]).reshape(-1, values)


def vgg16(x, net):
    """Sources at strides 8, 16, 32, 64, two of them normalized."""
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for index in range(1, count + 1):
            x = relu(conv(x, net[f"conv{stage}_{index}"], pad=1))
        if stage == 4:
            conv4_3 = x
        if stage == 5:
            conv5_3 = x
        x = max_pool(x, 2)
    fc6 = relu(conv(x, net["fc6"], pad=3, dilation=3))
    fc7 = relu(conv(fc6, net["fc7"]))
    conv6_2 = relu(conv(relu(conv(fc7, net["conv6_1"])), net["conv6_2"], stride=2, pad=1))
    return {
        "conv4_3_norm": l2_norm(conv4_3, net["conv4_3_norm"]),
        "conv5_3_norm": l2_norm(conv5_3, net["conv5_3_norm"]),
        "fc7": fc7,
        "conv6_2": conv6_2,
    }


def bottleneck(x, net, block, stride=1):
    def branch(x, name, **kwargs):
        x = conv(x, net[f"res{block}_{name}"], **kwargs)
        return batch_norm(x, net[f"bn{block}_{name}"], net[f"scale{block}_{name}"])

    shortcut = branch(x, "branch1", stride=stride) if f"res{block}_branch1" in net else x
    x = relu(branch(x, "branch2a", stride=stride))
    x = relu(branch(x, "branch2b", pad=1))
    return relu(shortcut + branch(x, "branch2c"))


RESNET101_STAGES = {
    2: ["2a", "2b", "2c"],
    3: ["3a", "3b1", "3b2", "3b3"],
    4: ["4a"] + [f"4b{i}" for i in range(1, 23)],
    5: ["5a", "5b", "5c"],
    6: ["6"],
}


def resnet101(x, net):
    """Sources at strides 8, 16, 32, 64."""
    x = relu(batch_norm(conv(x, net["conv1"], stride=2, pad=3), net["bn_conv1"], net["scale_conv1"]))
    x = max_pool(x, 3)
    sources = {}
    for stage, blocks in RESNET101_STAGES.items():
        for block in blocks:
            x = bottleneck(x, net, block, stride=2 if block == blocks[0] and stage > 2 else 1)
        sources[f"res{blocks[-1]}_relu"] = x
    del sources["res2c_relu"]
    return sources


def transfer_connections(sources, net, normalized):
    def apply(function, x, name, **kwargs):
        x = function(x, net[name], **kwargs)
        return batch_norm(x, net[f"{name}_bn"], net[f"{name}_scale"]) if normalized else x

    maps, above = {}, None
    for level, source in zip((6, 5, 4, 3), reversed(sources), strict=True):
        x = relu(apply(conv, source, f"TL{level}_1", pad=1))
        x = apply(conv, x, f"TL{level}_2", pad=1)
        if above is not None:
            x = x + apply(deconv, above, f"P{level + 1}-up")
        above = maps[f"P{level}"] = relu(apply(conv, relu(x), f"P{level}", pad=1))
    return {name: maps[name] for name in ("P3", "P4", "P5", "P6")}


def refinedet(x, net, classes):
    """Raw outputs of the network with these weights.

    Args:
        x: `[3, h, w]`, preprocessed.
        net: Caffe layer -> blobs; with `conv1`, a ResNet-101.
        classes: with background.

    Returns:
        arm_objectness `[n, 2]`, arm_offsets `[n, 4]`, odm_classes `[n, classes]`, odm_offsets `[n, 4]`.
    """
    deep = "conv1" in net
    sources = resnet101(x, net) if deep else vgg16(x, net)
    maps = transfer_connections(list(sources.values()), net, normalized=deep)
    heads = {}
    for module, features in (("arm", sources), ("odm", maps)):
        for kind in ("loc", "conf"):
            heads[f"{module}_{kind}"] = []
        for name, feature in features.items():
            if deep:
                name = f"{name}_inter"
                feature, name = bottleneck(feature, net, name), f"res{name}"
            for kind in ("loc", "conf"):
                heads[f"{module}_{kind}"].append(conv(feature, net[f"{name}_mbox_{kind}"], pad=1))
    return {
        "arm_objectness": flatten(heads["arm_conf"], 2),
        "arm_offsets": flatten(heads["arm_loc"], 4),
        "odm_classes": flatten(heads["odm_conf"], classes),
        "odm_offsets": flatten(heads["odm_loc"], 4),
    }
