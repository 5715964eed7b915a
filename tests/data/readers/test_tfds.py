import io

import numpy as np
import pytest
from PIL import Image

from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.data.readers.tfds import read_tfds
from refinedet_tf.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets.public_api", exc_type=ImportError)


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


class TinyDetection(tfds.core.GeneratorBasedBuilder):
    """Five training images with 0 to 4 objects, two for validation."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # no folder with checksums beside this class

    def _info(self):
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "is_crowd": np.bool_,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "image/filename": tfds.features.Text(),
                    "objects": tfds.features.Sequence(objects),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for index in range(count):
            file = io.BytesIO()
            Image.fromarray(pixels(index)).save(file, "PNG")
            file.seek(0)
            objects = [
                {
                    "bbox": tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=0.6 + number / 10),
                    "label": "dog" if number else "cat",
                    "is_crowd": number == 2,
                }
                for number in range(index)
            ]
            yield index, {"image": file, "image/filename": f"{index}.png", "objects": objects}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    TinyDetection(data_dir=folder).download_and_prepare()
    return folder


def test_a_data_set_is_read_with_boxes_classes_crowds_and_pixels(data_dir):
    found = read_tfds(data_dir, ["tiny_detection/train", "tiny_detection/validation"], ["dog", "cat"])
    assert len(found) == 7 and not found.defects
    for example, (image,) in zip(found.examples, image_pipeline(found.examples), strict=True):
        index = int(example.image_id.removesuffix(".png"))
        np.testing.assert_array_equal(image, pixels(index))
        expected = np.array([[0.2, 0.1, 0.6 + number / 10, 0.5] for number in range(index)], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(example.boxes, expected)
        assert example.classes.tolist() == [1, 0, 0, 0][:index]
        assert example.crowd.tolist() == [False, False, True, False][:index]


def test_parts_of_splits_and_the_datas_own_classes(data_dir):
    whole = read_tfds(data_dir, ["tiny_detection/train"], None)
    part = read_tfds(data_dir, ["tiny_detection/train[2:4]"], None)
    assert part.classes == ["cat", "dog"]
    assert [example.image_id for example in part.examples] == [e.image_id for e in whole.examples][2:4]


def test_what_does_not_exist_or_fit_is_named(data_dir):
    with pytest.raises(DataError, match=r"no nothing/train .*such as voc/2007/train.*Dataset nothing not found"):
        read_tfds(data_dir, ["nothing/train"], None)
    with pytest.raises(DataError, match=r"no tiny_detection/test"):
        read_tfds(data_dir, ["tiny_detection/test"], None)
    with pytest.raises(DataError, match=r"has no class bird\. model\.classes has: cat, bird\. The file has: cat, dog"):
        read_tfds(data_dir, ["tiny_detection/train"], ["cat", "bird"])
