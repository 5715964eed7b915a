import zipfile

import numpy as np
import pytest

from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.model import RefineDet
from refinedet_tf.weights import WeightFileError, load_weights
from refinedet_tf.weights.assign import assign, named_variables
from tests.conftest import PROJECT

IMAGENET = PROJECT.parent / "shared" / "weights" / "mobilenet_v1_0.25_224_imagenet.npz"


def values(model):
    return {name: variable.numpy().copy() for name, variable in named_variables(model).items()}


@pytest.fixture
def other_model(tiny_config):
    return RefineDet(tiny_config)


def test_every_variable_has_a_name_of_its_own(tiny_model):
    assert len(named_variables(tiny_model)) == len(tiny_model.variables)


def test_a_saved_model_hands_on_all_its_weights(tiny_model, other_model, tiny_images, tmp_path):
    tiny_model.save(tmp_path / "model.keras")
    report = load_weights(other_model, tmp_path / "model.keras")
    assert len(report.loaded) == len(tiny_model.variables) and not report.kept and not report.unused
    for name, output in tiny_model(tiny_images).items():
        np.testing.assert_array_equal(output, other_model(tiny_images)[name])


@pytest.mark.skipif(not IMAGENET.exists(), reason="the ImageNet weights are not on this machine")
def test_imagenet_weights_fill_the_backbone_and_nothing_else(other_model):
    before = values(other_model)
    report = load_weights(other_model, IMAGENET)
    after, archive = values(other_model), np.load(IMAGENET)
    np.testing.assert_array_equal(after["conv_dw_3/kernel"], archive["conv_dw_3/depthwise_kernel"])
    assert len(report.loaded) == 27 * 5  # convolutions with four batch normalisation variables each
    assert report.unused == ["conv_preds/bias", "conv_preds/kernel"]
    for name in report.kept:
        np.testing.assert_array_equal(after[name], before[name])
    assert f"{len(report.loaded)} of {len(before)}" in report.summary()


def test_other_shapes_are_listed_and_nothing_is_changed(other_model):
    before = values(other_model)
    arrays = {name: value + 1 for name, value in before.items()}
    arrays["conv_pw_2/kernel"] = np.zeros((1, 1, 5, 7), np.float32)
    with pytest.raises(WeightFileError, match=r"conv_pw_2/kernel: \(1, 1, 5, 7\) in the file"):
        assign(other_model, arrays, "test")
    for name, value in values(other_model).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_file_of_another_network_is_refused(other_model):
    with pytest.raises(WeightFileError, match="no variable of this model"):
        assign(other_model, {"layer4.0.conv1/weight": np.zeros(3)}, "test")


def test_a_model_of_another_width_is_refused(tiny_config, tiny_model, tmp_path):
    wide = RefineDet(
        ModelConfig(
            classes=tiny_config.classes, input_size=[64, 64], backbone=BackboneConfig("mobilenet_v1", 0.5),
            width=16, separable=True, batch_norm=True,
        )
    )
    tiny_model.save(tmp_path / "model.keras")
    with pytest.raises(WeightFileError, match="does not fit"):
        load_weights(wide, tmp_path / "model.keras")


def test_hostile_and_broken_files_are_refused(other_model, tmp_path):
    np.savez(tmp_path / "pickled.npz", **{"conv1/kernel": np.array([{"a": 1}], dtype=object)})
    with zipfile.ZipFile(tmp_path / "fake.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("pickled.npz", "fake.keras", "text.npz", "missing.npz"):
        with pytest.raises(WeightFileError, match=name):
            load_weights(other_model, tmp_path / name)
