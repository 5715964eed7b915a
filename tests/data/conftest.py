"""Hand-made data sets in VOC layout."""

import numpy as np
import pytest
from PIL import Image


def voc_object(name, box, difficult=0):
    keys = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


class VocFolder:
    """A data set that a test fills image by image."""

    def __init__(self, root):
        self.root = root
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / folder).mkdir(parents=True)

    def add(self, image_id, objects=(), split="train", size=(50, 40), stated_size=None, extension=".jpg", head=""):
        """Writes noise of `size` (width, height) and its annotation; `objects` are made by `voc_object`."""
        pixels = np.random.default_rng(sum(map(ord, image_id))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        path = self.root / "JPEGImages" / f"{image_id}{extension}"
        Image.fromarray(pixels).save(path)
        width, height = stated_size or size
        (self.root / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation>{head}<size><width>{width}</width><height>{height}</height></size>"
            f"{''.join(objects)}</annotation>"
        )
        with open(self.root / "ImageSets" / "Main" / f"{split}.txt", "a") as file:
            file.write(f"{image_id}\n")
        return path


@pytest.fixture
def voc_folder(tmp_path):
    return VocFolder(tmp_path / "VOC2007")
