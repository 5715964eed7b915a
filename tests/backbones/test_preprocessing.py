"""The form of input that a model's weights expect is part of the model, whatever it is saved as."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.model import RefineDet
from refinedet_tf.serving.tflite import convert_tflite
from refinedet_tf.weights import load_model

# Of red, green and blue in 0..255.
MODES = {
    "caffe": lambda x: x[..., ::-1] - np.float32([104, 117, 123]),
    "tf": lambda x: x / np.float32(127.5) - 1,
    "torch": lambda x: (x / 255 - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]),
    "lite": lambda x: (x - np.float32(127)) / np.float32(128),
    "none": lambda x: x,
}


def build(mode):
    # The backbone with the fewest layers, which is the quickest to export.
    backbone = BackboneConfig("vgg16", preprocessing=mode)
    return RefineDet(ModelConfig(classes=["a", "b"], input_size=[64, 128], backbone=backbone, width=8))


@pytest.fixture(scope="module")
def models(narrow_vgg16):
    """One set of weights under every form of input."""
    keras.utils.set_random_seed(3)
    result = {mode: build(mode) for mode in MODES}
    weights = result["none"].get_weights()
    for model in result.values():
        model.set_weights(weights)
    return result


@pytest.fixture(scope="module")
def expected(models, tiny_images):
    """What the layers behind the preprocessing make of images that NumPy has prepared."""
    network = models["none"]
    return {mode: network(prepare(tiny_images)) for mode, prepare in MODES.items()}


def assert_outputs(outputs, expected, mode):
    """Those of one form of input, and of no other."""
    for name in ("arm_objectness", "odm_classes"):
        for other, values in expected.items():
            difference = np.abs(outputs[name] - values[name]).max() / np.abs(values[name]).max()
            # (RGB - 127) / 128 and RGB / 127.5 - 1 differ by half a percent.
            least = 1e-3 if {mode, other} == {"lite", "tf"} else 1e-2
            assert difference < 1e-4 if other == mode else difference > least, (name, other, difference)


@pytest.mark.parametrize("mode", MODES)
def test_the_model_prepares_images_itself_also_when_reloaded(mode, models, expected, tiny_images, tmp_path):
    assert_outputs(models[mode](tiny_images), expected, mode)
    models[mode].save(tmp_path / "model.keras")
    again = load_model(tmp_path / "model.keras")
    assert again.config.backbone.preprocessing == mode
    assert_outputs(again(tiny_images), expected, mode)


@pytest.fixture(scope="module")
def pixels(tiny_images):
    return np.round(tiny_images[:1]).astype(np.uint8)


@pytest.fixture(scope="module")
def expected_of_pixels(models, pixels):
    return {mode: models["none"](prepare(pixels.astype(np.float32))) for mode, prepare in MODES.items()}


# The two that the shipped recipes use.
@pytest.mark.parametrize("mode", ["caffe", "tf"])
def test_exported_models_prepare_images_themselves(mode, models, pixels, expected_of_pixels, tmp_path):
    models[mode].export(tmp_path / "saved_model")
    raw = tf.saved_model.load(tmp_path / "saved_model").signatures["serving_raw"](images=tf.constant(pixels))
    assert_outputs({name: value.numpy() for name, value in raw.items()}, expected_of_pixels, mode)

    content = convert_tflite(models[mode], postprocess="none")
    runner = tf.lite.Interpreter(model_content=content).get_signature_runner()
    assert_outputs(runner(images=pixels), expected_of_pixels, mode)
