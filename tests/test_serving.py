"""An exported model in a process that cannot import `refinedet_tf`, beside the live one in this process."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf import serving
from refinedet_tf.ops.images import resize

# Runs elsewhere: loads the SavedModel given first, feeds it the arrays of the .npz given second.
CLIENT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "refinedet_tf":
            raise ImportError("refinedet_tf is not for clients")

sys.meta_path.insert(0, Blocker())
import numpy as np
import tensorflow as tf

serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
(images,) = serve.structured_input_signature[1].values()
assert images.dtype == tf.uint8 and images.shape.as_list() == [None, None, None, 3], images
results = {}
for name, batch in np.load(sys.argv[2]).items():
    for output, value in serve(images=tf.constant(batch)).items():
        results[f"{name}/{output}"] = value.numpy()
np.savez(sys.argv[3], **results)
assert not any(name.startswith("refinedet_tf") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def batches():
    """Two images of one size, three of another, one of the model's own."""
    rng = np.random.default_rng(0)
    shapes = {"small": (2, 50, 40, 3), "large": (3, 150, 333, 3), "own": (1, 64, 128, 3)}
    return {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "saved_model"
    tiny_model.export(path)
    return path


@pytest.fixture(scope="module")
def outputs(exported, batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    np.savez(folder / "images.npz", **batches)
    arguments = [str(exported), str(folder / "images.npz"), str(folder / "outputs.npz")]
    # -I: neither this folder nor the environment lead to the package.
    result = subprocess.run([sys.executable, "-I", "-c", CLIENT, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(np.load(folder / "outputs.npz"))


@pytest.mark.parametrize("name", ["small", "large", "own"])
def test_exported_model_gives_the_detections_of_the_live_one(tiny_model, batches, outputs, name):
    live = tiny_model.detect(resize(batches[name], (64, 128)))
    count = int(live["num_detections"][0])
    assert count > 10
    np.testing.assert_array_equal(outputs[f"{name}/num_detections"], live["num_detections"])
    np.testing.assert_array_equal(outputs[f"{name}/detection_classes"], live["classes"])
    np.testing.assert_allclose(outputs[f"{name}/detection_scores"], live["scores"], atol=1e-6)
    xmin, ymin, xmax, ymax = np.moveaxis(np.clip(live["boxes"], 0, 1), -1, 0)
    expected = np.stack([ymin, xmin, ymax, xmax], axis=-1)
    np.testing.assert_allclose(outputs[f"{name}/detection_boxes"], expected, atol=1e-5)


def test_outputs_have_the_names_types_and_shapes_that_clients_expect(outputs, batches):
    kinds = {name: (value.dtype.name, value.shape) for name, value in outputs.items()}
    assert kinds == {
        f"{name}/{output}": (dtype, (len(batch), *shape))
        for name, batch in batches.items()
        for output, dtype, shape in (
            ("detection_boxes", "float32", (500, 4)),
            ("detection_scores", "float32", (500,)),
            ("detection_classes", "int32", (500,)),
            ("num_detections", "int32", ()),
        )
    }


def test_labels_lie_beside_the_exported_model(exported):
    assert (exported / "assets.extra" / "labels.txt").read_text() == "circle\nsquare\nstar\n"
    assert serving.read_labels(str(exported)) == ["circle", "square", "star"]


def test_labels_keep_spaces_and_other_alphabets(tmp_path):
    names = ["traffic light", "Bär", "猫"]
    serving.write_labels(str(tmp_path), names)
    assert serving.read_labels(str(tmp_path)) == names


def test_served_boxes_are_clipped_and_have_the_vertical_axis_first():
    detections = {
        "boxes": tf.constant([[[-0.5, 0.25, 0.75, 1.5], [0.0, 0.0, 0.0, 0.0]]]),
        "scores": tf.constant([[0.5, 0.0]]),
        "classes": tf.constant([[2, -1]]),
        "num_detections": tf.constant([1]),
    }
    served = serving.serving_outputs(detections)
    assert tuple(served) == serving.OUTPUT_NAMES
    np.testing.assert_array_equal(served["detection_boxes"], [[[0.25, 0, 1, 0.75], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(served["detection_scores"], detections["scores"])
    np.testing.assert_array_equal(served["detection_classes"], detections["classes"])
    np.testing.assert_array_equal(served["num_detections"], detections["num_detections"])


class Corner(tf.Module):
    """Detects nothing; its boxes are the values of pixels, which shows what reaches a model."""

    config = SimpleNamespace(classes=["a"], input_size=[64, 64])

    def detect(self, images):
        assert images.dtype == tf.float32 and images.shape[1:] == [64, 64, 3]
        batch = tf.shape(images)[0]
        return {
            "boxes": tf.concat([images[:, :1, 0], images[:, 0, -1:, :1]], axis=-1) / 255.0,
            "scores": tf.zeros([batch, 1]),
            "classes": -tf.ones([batch, 1], tf.int32),
            "num_detections": tf.zeros([batch], tf.int32),
        }
