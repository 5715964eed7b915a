"""The names of the model's layers in the files of other programs."""

import re

# The source of the heads of each level: layers in the VGG-16 files, the middle of a name in the ResNet-101 files.
_VGG16_SOURCES = {
    "arm": {"3": "conv4_3_norm", "4": "conv5_3_norm", "5": "fc7", "6": "conv6_2"},
    "odm": {"3": "P3", "4": "P4", "5": "P5", "6": "P6"},
}
_RESNET101_SOURCES = {
    "arm": {"3": "res3b3_relu", "4": "res4b22_relu", "5": "res5c_relu", "6": "res6_relu"},
    "odm": {"3": "P3", "4": "P4", "5": "P5", "6": "P6"},
}
_HEAD_KINDS = {"objectness": "conf", "classes": "conf", "offsets": "loc"}

_HEAD = re.compile(r"(arm|odm)(\d)_(objectness|classes|offsets)")
_HEAD_BLOCK = re.compile(r"(arm|odm)(\d)_inter_(branch1|branch2[abc])(_bn)?")

# State dict of luuuyi's RefineDet.PyTorch: the module's name -> Caffe's layer.
_VGG_LIST = {
    0: "conv1_1",
    2: "conv1_2",
    5: "conv2_1",
    7: "conv2_2",
    10: "conv3_1",
    12: "conv3_2",
    14: "conv3_3",
    17: "conv4_1",
    19: "conv4_2",
    21: "conv4_3",
    24: "conv5_1",
    26: "conv5_2",
    28: "conv5_3",
    31: "fc6",
    33: "fc7",
}
_ARM = ("conv4_3_norm", "conv5_3_norm", "fc7", "conv6_2")
_ODM = ("P3", "P4", "P5", "P6")
LUUUYI = {
    **{f"vgg.{index}": layer for index, layer in _VGG_LIST.items()},
    "conv4_3_L2Norm": "conv4_3_norm",
    "conv5_3_L2Norm": "conv5_3_norm",
    "extras.0": "conv6_1",
    "extras.1": "conv6_2",
    **{f"arm_loc.{i}": f"{source}_mbox_loc" for i, source in enumerate(_ARM)},
    **{f"arm_conf.{i}": f"{source}_mbox_conf" for i, source in enumerate(_ARM)},
    **{f"odm_loc.{i}": f"{source}_mbox_loc" for i, source in enumerate(_ODM)},
    **{f"odm_conf.{i}": f"{source}_mbox_conf" for i, source in enumerate(_ODM)},
    **{f"tcb0.{3 * i}": f"TL{i + 3}_1" for i in range(4)},
    **{f"tcb0.{3 * i + 2}": f"TL{i + 3}_2" for i in range(4)},
    **{f"tcb1.{i}": f"P{i + 4}-up" for i in range(3)},
    **{f"tcb2.{3 * i + 1}": f"P{i + 3}" for i in range(4)},
}
# vgg16_reducedfc.pth, the list `vgg` without its prefix.
REDUCED_VGG16 = {str(index): layer for index, layer in _VGG_LIST.items()}

# EfficientNet-PyTorch: the module's name -> KerasCV's layer, outside and inside of the blocks.
EFFICIENTNET_LITE = {"_conv_stem": "stem_conv", "_bn0": "stem_bn", "_conv_head": "top_conv", "_bn1": "top_bn"}
EFFICIENTNET_LITE_BLOCK = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_bn",
    "_depthwise_conv": "dwconv",
    "_bn1": "bn",
    "_project_conv": "project_conv",
    "_bn2": "project_bn",
}

_RESNET_LAYER = re.compile(r"conv(\d)_block(\d+)_([0-3])_(conv|bn)")
_BRANCHES = ("branch1", "branch2a", "branch2b", "branch2c")


def caffe_layers(layer: str, backbone: str) -> tuple[str, ...]:
    """Returns the names of the Caffe layers that a layer of the model corresponds to.

    Args:
        layer: the model's name. Names differ only for the heads, the blocks before them and batch normalization.
        backbone: `vgg16` or `resnet101`.

    Returns:
        One name; two for batch normalization, which is `BatchNorm` and `Scale` in Caffe.
    """
    if match := _HEAD.fullmatch(layer):
        module, level, kind = match.groups()
        if backbone == "vgg16":
            return (f"{_VGG16_SOURCES[module][level]}_mbox_{_HEAD_KINDS[kind]}",)
        return (f"res{_RESNET101_SOURCES[module][level]}_inter_mbox_{_HEAD_KINDS[kind]}",)
    if match := _HEAD_BLOCK.fullmatch(layer):
        module, level, branch, normalizes = match.groups()
        rest = f"{_RESNET101_SOURCES[module][level]}_inter_{branch}"
        return (f"bn{rest}", f"scale{rest}") if normalizes else (f"res{rest}",)
    if layer.startswith("bn"):
        return layer, f"scale{layer.removeprefix('bn')}"
    if layer.endswith("_bn"):
        return layer, f"{layer.removesuffix('_bn')}_scale"
    return (layer,)


def from_keras_applications(layer: str) -> str:
    """Returns the model's name for a layer of keras.applications' VGG16 or ResNet101, and other names unchanged."""
    vgg = {"fc1": "fc6", "fc2": "fc7", "conv1_conv": "conv1", "conv1_bn": "bn_conv1"}
    if match := re.fullmatch(r"block(\d)_conv(\d)", layer):
        return f"conv{match[1]}_{match[2]}"
    if match := _RESNET_LAYER.fullmatch(layer):
        stage, block, branch, kind = match.groups()
        return f"{'res' if kind == 'conv' else 'bn'}{stage}{_block(stage, int(block))}_{_BRANCHES[int(branch)]}"
    return vgg.get(layer, layer)


def _block(stage: str, number: int) -> str:
    """Returns the original's suffix: a, b, c in the short stages and a, b1, b2 ... in the long ones."""
    if stage in ("3", "4"):
        return f"b{number - 1}" if number > 1 else "a"
    return "abc"[number - 1]
