"""Random weights for the Caffe networks, and the PyTorch port's names for them: tables of layers and shapes."""

import numpy as np

from tests.weights.reference_graph import RESNET101_STAGES

VGG16_TRUNK = {
    "conv1_1": (64, 3, 3, 3),
    "conv1_2": (64, 64, 3, 3),
    "conv2_1": (128, 64, 3, 3),
    "conv2_2": (128, 128, 3, 3),
    "conv3_1": (256, 128, 3, 3),
    "conv3_2": (256, 256, 3, 3),
    "conv3_3": (256, 256, 3, 3),
    "conv4_1": (512, 256, 3, 3),
    **dict.fromkeys(["conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"], (512, 512, 3, 3)),
    "fc6": (1024, 512, 3, 3),
    "fc7": (1024, 1024, 1, 1),
}
VGG16_SOURCES = {"conv4_3_norm": 512, "conv5_3_norm": 512, "fc7": 1024, "conv6_2": 512}

# Names of luuuyi's RefineDet.PyTorch, module by module in its order, beside Caffe's.
LUUUYI_MODULES = {
    "vgg.0": "conv1_1", "vgg.2": "conv1_2", "vgg.5": "conv2_1", "vgg.7": "conv2_2", "vgg.10": "conv3_1",
    "vgg.12": "conv3_2", "vgg.14": "conv3_3", "vgg.17": "conv4_1", "vgg.19": "conv4_2", "vgg.21": "conv4_3",
    "vgg.24": "conv5_1", "vgg.26": "conv5_2", "vgg.28": "conv5_3", "vgg.31": "fc6", "vgg.33": "fc7",
    "conv4_3_L2Norm": "conv4_3_norm", "conv5_3_L2Norm": "conv5_3_norm", "extras.0": "conv6_1", "extras.1": "conv6_2",
    "arm_loc.0": "conv4_3_norm_mbox_loc", "arm_loc.1": "conv5_3_norm_mbox_loc", "arm_loc.2": "fc7_mbox_loc",
    "arm_loc.3": "conv6_2_mbox_loc",
    "arm_conf.0": "conv4_3_norm_mbox_conf", "arm_conf.1": "conv5_3_norm_mbox_conf", "arm_conf.2": "fc7_mbox_conf",
    "arm_conf.3": "conv6_2_mbox_conf",
    "odm_loc.0": "P3_mbox_loc", "odm_loc.1": "P4_mbox_loc", "odm_loc.2": "P5_mbox_loc", "odm_loc.3": "P6_mbox_loc",
    "odm_conf.0": "P3_mbox_conf", "odm_conf.1": "P4_mbox_conf", "odm_conf.2": "P5_mbox_conf",
    "odm_conf.3": "P6_mbox_conf",
    "tcb0.0": "TL3_1", "tcb0.2": "TL3_2", "tcb0.3": "TL4_1", "tcb0.5": "TL4_2", "tcb0.6": "TL5_1", "tcb0.8": "TL5_2",
    "tcb0.9": "TL6_1", "tcb0.11": "TL6_2", "tcb1.0": "P4-up", "tcb1.1": "P5-up", "tcb1.2": "P6-up",
    "tcb2.1": "P3", "tcb2.4": "P4", "tcb2.7": "P5", "tcb2.10": "P6",
}  # fmt: skip


class Net(dict):
    """Caffe layer -> blobs, drawn so that activations neither vanish nor explode."""

    def __init__(self, seed):
        super().__init__()
        self.random = np.random.default_rng(seed)

    def normal(self, shape, deviation):
        return (self.random.standard_normal(shape, np.float32) * np.float32(deviation)).astype(np.float32)

    def uniform(self, low, high, size):
        return self.random.uniform(low, high, size).astype(np.float32)

    def conv(self, name, shape, bias=True):
        self[name] = [self.normal(shape, np.sqrt(2 / np.prod(shape[1:])))]
        if bias:
            self[name].append(self.normal(shape[0], 0.1))

    def batch_norm(self, name, scale_name, channels, gamma=1.0):
        factor = np.float32(self.random.uniform(0.5, 3))
        mean, variance = self.normal(channels, 0.2), self.uniform(0.5, 2, channels)
        self[name] = [mean * factor, variance * factor, np.array([factor], np.float32)]
        self[scale_name] = [gamma * self.uniform(0.5, 1.5, channels), self.normal(channels, 0.2)]

    def bottleneck(self, block, inputs, inner, outer, projection):
        shapes = {"branch2a": (inner, inputs, 1, 1), "branch2b": (inner, inner, 3, 3), "branch2c": (outer, inner, 1, 1)}
        if projection:
            shapes["branch1"] = (outer, inputs, 1, 1)
        for branch, shape in shapes.items():
            self.conv(f"res{block}_{branch}", shape, bias=False)
            gamma = 0.3 if branch == "branch2c" else 0.8
            self.batch_norm(f"bn{block}_{branch}", f"scale{block}_{branch}", shape[0], gamma)

    def transfer_connections(self, inputs, normalized):
        shapes = {}
        for level, channels in zip((3, 4, 5, 6), inputs, strict=True):
            shapes[f"TL{level}_1"] = (256, channels, 3, 3)
            shapes[f"TL{level}_2"] = shapes[f"P{level}"] = (256, 256, 3, 3)
            if level > 3:
                shapes[f"P{level}-up"] = (256, 256, 2, 2)
        for name, shape in shapes.items():
            self.conv(name, shape, bias=not normalized)
            if normalized:
                self.batch_norm(f"{name}_bn", f"{name}_scale", 256, 0.8)

    def heads(self, sources, values, classes):
        for name, channels in sources.items():
            self.conv(f"{name}_mbox_loc", (3 * values, channels, 3, 3))
            self.conv(f"{name}_mbox_conf", (3 * classes, channels, 3, 3))


def random_vgg16(seed, classes):
    """RefineDet on VGG-16; `classes` with background."""
    net = Net(seed)
    for name, shape in VGG16_TRUNK.items():
        net.conv(name, shape)
    net["conv1_1"][0] /= 50  # pixels are of the order of 50
    net.conv("conv6_1", (256, 1024, 1, 1))
    net.conv("conv6_2", (512, 256, 3, 3))
    net["conv4_3_norm"] = [net.uniform(5, 15, 512)]
    net["conv5_3_norm"] = [net.uniform(4, 12, 512)]
    net.transfer_connections(VGG16_SOURCES.values(), normalized=False)
    net.heads(VGG16_SOURCES, 4, 2)
    net.heads(dict.fromkeys(["P3", "P4", "P5", "P6"], 256), 4, classes)
    return net


def random_resnet101(seed, classes):
    """RefineDet on ResNet-101; `classes` with background."""
    net = Net(seed)
    net.conv("conv1", (64, 3, 7, 7), bias=False)
    net["conv1"][0] /= 50
    net.batch_norm("bn_conv1", "scale_conv1", 64)
    channels = 64
    for stage, (inner, outer) in {2: (64, 256), 3: (128, 512), 4: (256, 1024), 5: (512, 2048), 6: (128, 512)}.items():
        for block in RESNET101_STAGES[stage]:
            net.bottleneck(block, channels, inner, outer, projection=block == RESNET101_STAGES[stage][0])
            channels = outer
    sources = {"res3b3_relu": 512, "res4b22_relu": 1024, "res5c_relu": 2048, "res6_relu": 512}
    net.transfer_connections(sources.values(), normalized=True)
    pyramid = dict.fromkeys(["P3", "P4", "P5", "P6"], 256)
    for name, channels in {**sources, **pyramid}.items():
        net.bottleneck(f"{name}_inter", channels, 256, 1024, projection=True)
    net.heads({f"res{name}_inter": 1024 for name in sources}, 4, 2)
    net.heads({f"res{name}_inter": 1024 for name in pyramid}, 4, classes)
    return net


def as_state_dict(net, modules=None):
    """The same layers under the names of the PyTorch port."""
    state = {}
    for module, layer in (modules or LUUUYI_MODULES).items():
        for kind, blob in zip(("weight", "bias"), net[layer], strict=False):
            state[f"{module}.{kind}"] = blob
    return state
