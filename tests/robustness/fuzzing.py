"""Fuzzing: every reader gets randomly damaged files and must return a result or raise a `RefineDetError`, soon.

    python -m tests.robustness.fuzzing --cases=20000

`test_fuzzing.py` runs a few cases of it. Each target runs in its own process, so crashes and hangs are found too;
`work/fuzz` then holds the file that caused them. Exits with 1 after a crash, a case of more than 20 seconds, more than
1 GB of memory, or any exception other than a `RefineDetError`.
"""

import argparse
import collections
import faulthandler
import functools
import io
import json
import multiprocessing
import resource
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from refinedet_tf.config import as_dict, load_config, save_config
from refinedet_tf.errors import RefineDetError
from tests.changed_recipe import CHANGED
from tests.weights.caffe_writer import write_caffemodel
from tests.weights.pytorch_writer import write_checkpoint

MAX_SECONDS, MAX_MEMORY = 20, 2**30
FOLDER = Path("work/fuzz")


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        seeds: returns valid files; may write others to the empty folder that it gets.
        read: reads a damaged file; gets the folder and the content of the file.
        share: weight of the target in the number of cases; small where a case is slow.
        in_suite: whether `test_fuzzing.py` includes it.
    """

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path, bytes], None]
    share: float = 1.0
    in_suite: bool = True


def written(write: Callable[[Path], None], folder: Path) -> bytes:
    """Returns the bytes that a function writes to a path."""
    write(folder / "seed")
    return (folder / "seed").read_bytes()


def pictures(folder: Path) -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image, exif, files = Image.fromarray(pixels), Image.Exif(), []
    exif[0x0112] = 6
    for kind, options in (
        ("PNG", {}),
        ("PNG", {"exif": exif}),
        ("JPEG", {"exif": exif}),
        ("BMP", {}),
        ("GIF", {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]}),
        ("WEBP", {}),
        ("TIFF", {}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
    return files


def read_picture(folder: Path, content: bytes) -> None:
    from refinedet_tf.inference.images import read_image

    read_image(content)


def decode_picture(folder: Path, content: bytes) -> None:
    """Decodes as `serving_bytes` does, which flags files that are not images and raises nothing."""
    images, _, is_valid = graph_decoder()([content])
    assert images.shape == (1, 64, 64, 3) and is_valid.shape == (1,)


@functools.cache
def graph_decoder() -> Callable:
    import tensorflow as tf

    from refinedet_tf.ops.resizing import Resizing
    from refinedet_tf.serving.signatures import decode_batch

    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(lambda files: decode_batch(files, Resizing(64, 64), 10**6), signature)


def voc(folder: Path) -> list[bytes]:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "JPEGImages/a.jpg")
    (folder / "ImageSets/Main/train.txt").write_text("a\n")
    item = "<object><name>cat</name><difficult>0</difficult><bndbox>{}</bndbox></object>"
    box = "<xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25.5</ymax>"
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    text = f"<annotation><filename>a.jpg</filename>{size}{item.format(box) * 2}</annotation>"
    return [text.encode()]


def read_voc(folder: Path, content: bytes) -> None:
    from refinedet_tf.data.readers.voc import read_voc

    (folder / "Annotations/a.xml").write_bytes(content)
    read_voc(folder, ["train"], None).summary()


def coco(folder: Path) -> list[bytes]:
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    content = {
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 4.5, 4], "iscrowd": 0}],
    }
    return [json.dumps(content).encode()]


def read_coco(folder: Path, content: bytes) -> None:
    from refinedet_tf.data.readers.coco import read_coco

    (folder / "a.json").write_bytes(content)
    read_coco(folder, None, None, annotations="a.json").summary()


def detections(folder: Path) -> list[bytes]:
    (folder / "truth.json").write_bytes(coco(folder)[0])
    entry = {"image_id": 1, "category_id": 2, "bbox": [1, 1, 4.5, 4], "score": 0.5}
    return [json.dumps([entry, entry]).encode()]


def read_detections(folder: Path, content: bytes) -> None:
    from refinedet_tf.data.readers.coco import read_coco
    from refinedet_tf.evaluation.result_files import read_detections

    (folder / "found.json").write_bytes(content)
    read_detections(folder / "found.json", read_coco(folder, None, None, annotations="truth.json"))


def yolo(folder: Path) -> list[bytes]:
    for name in ("images/train", "labels/train"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "images/train/a.png")
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.2 0.1 0.2 0.3\n")
    return [b"names: {0: cat, 1: dog}\npath: .\ntrain: images/train\n", b"names: [cat, dog]\ntrain: [images/train]\n"]


def read_yolo(folder: Path, content: bytes) -> None:
    from refinedet_tf.data.readers.yolo import read_yolo

    (folder / "data.yaml").write_bytes(content)
    read_yolo(folder, ["train"], None).summary()


def records(folder: Path) -> list[bytes]:
    from refinedet_tf.data.readers.coco import read_coco
    from refinedet_tf.data.record_writer import write_tfrecords

    (folder / "a.json").write_bytes(coco(folder)[0])
    examples = read_coco(folder, None, None, annotations="a.json")
    (path,) = write_tfrecords(examples, folder / "records", "train", 1)
    return [Path(path).read_bytes()]


def read_records(folder: Path, content: bytes) -> None:
    """Writes the damaged record with a valid checksum; otherwise TensorFlow would refuse nearly all of them."""
    import tensorflow as tf

    from refinedet_tf.data.readers.tfrecords import read_tfrecords

    (path,) = (folder / "records").glob("train*")
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(content[12:-4])
    read_tfrecords(folder / "records", ["train"], None).summary()


def recipe(folder: Path) -> list[bytes]:
    return [written(lambda path: save_config(CHANGED, path), folder), b"model: {classes: [cat, dog]}\n"]


def read_recipe(folder: Path, content: bytes) -> None:
    (folder / "recipe.yaml").write_bytes(content)
    load_config(folder / "recipe.yaml")


def read_class_map(folder: Path, content: bytes) -> None:
    from refinedet_tf.weights.class_maps import read_class_map

    (folder / "map.yaml").write_bytes(content)
    read_class_map(folder / "map.yaml")


def arrays() -> dict[str, np.ndarray]:
    return {"conv/kernel": np.ones((3, 3, 2, 4), np.float32), "conv/bias": np.arange(4, dtype=np.float32)}


def read_npz(folder: Path, content: bytes) -> None:
    from refinedet_tf.weights.files.npz import read_npz

    (folder / "a.npz").write_bytes(content)
    read_npz(folder / "a.npz", 10**6)


def caffemodels(folder: Path) -> list[bytes]:
    layers = {"conv": list(arrays().values()), "relu": []}
    return [written(lambda path, v1=v1: write_caffemodel(path, layers, v1=v1), folder) for v1 in (False, True)]


def read_caffemodel(folder: Path, content: bytes) -> None:
    from refinedet_tf.weights.files.caffe import is_caffemodel, read_caffemodel

    (folder / "a.caffemodel").write_bytes(content)
    is_caffemodel(folder / "a.caffemodel")
    read_caffemodel(folder / "a.caffemodel")


def checkpoints(folder: Path) -> list[bytes]:
    return [written(lambda path, old=old: write_checkpoint(path, arrays(), old), folder) for old in (False, True)]


def read_checkpoint(folder: Path, content: bytes) -> None:
    from refinedet_tf.weights.files.pytorch import is_pytorch_file, read_state_dict

    (folder / "a.pth").write_bytes(content)
    is_pytorch_file(folder / "a.pth")
    read_state_dict(folder / "a.pth")


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        values = file.create_group("layers/conv2d/vars")
        values.attrs["name"] = "conv"
        for index, array in enumerate(arrays().values()):
            values[str(index)] = array


def read_hdf5(folder: Path, content: bytes) -> None:
    from refinedet_tf.weights.files.hdf5 import read_layers

    (folder / "a.weights.h5").write_bytes(content)
    read_layers(folder / "a.weights.h5", 10**6)


def model_config(folder: Path) -> list[bytes]:
    """Returns the configuration of a .keras file; the file itself has a checksum, which reveals most damage."""
    config = {
        "module": "refinedet_tf.model",
        "class_name": "RefineDet",
        "registered_name": "refinedet_tf>RefineDet",
        "config": {"config": as_dict(CHANGED.model), "name": "refinedet", "dtype": None},
    }
    return [json.dumps(config).encode()]


def read_model(folder: Path, content: bytes) -> None:
    from refinedet_tf.weights import load_model

    with zipfile.ZipFile(folder / "a.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", content)
        archive.writestr("model.weights.h5", written(write_hdf5, folder))
    load_model(folder / "a.keras")


def tflite_file(folder: Path) -> list[bytes]:
    """Returns the flatbuffer of an exported file, without the archive that is appended to it."""
    from refinedet_tf.config import BackboneConfig, ModelConfig
    from refinedet_tf.model import build_model
    from refinedet_tf.serving.metadata import read_metadata
    from refinedet_tf.serving.tflite import convert_tflite

    backbone = BackboneConfig("mobilenet_v1", 0.25)
    config = ModelConfig(classes=["a"], input_size=[64, 64], backbone=backbone, width=8, separable=True)
    (folder / "seed.tflite").write_bytes(convert_tflite(build_model(config)))
    read_metadata(folder / "seed.tflite")
    with zipfile.ZipFile(folder / "seed.tflite") as archive:
        start = min(member.header_offset for member in archive.infolist())
    return [(folder / "seed.tflite").read_bytes()[:start]]


def run_tflite(folder: Path, content: bytes) -> None:
    """Gives the damaged network the checksums of a sound file, as an attacker would, and runs it."""
    from refinedet_tf.inference.tflite_runner import TFLiteModel
    from refinedet_tf.serving.metadata import FLATBUFFER, Metadata, append_metadata, read_metadata

    metadata = read_metadata(folder / "seed.tflite")
    settings = {key: value for key, value in metadata.settings.items() if key != FLATBUFFER}
    (folder / "a.tflite").write_bytes(append_metadata(content, Metadata(metadata.classes, settings)))
    TFLiteModel(folder / "a.tflite", num_threads=1).detect(np.zeros((64, 64, 3), np.uint8))


TARGETS = {
    "pictures": Target(pictures, read_picture),
    "pictures in a graph": Target(pictures, decode_picture, share=0.5),
    "VOC": Target(voc, read_voc, share=0.5),
    "COCO": Target(coco, read_coco),
    "detections": Target(detections, read_detections),
    "YOLO": Target(yolo, read_yolo),
    "TFRecord": Target(records, read_records, share=0.3),
    "recipe": Target(recipe, read_recipe),
    "class map": Target(lambda folder: [b"{cat: 8, dog: 12}\n"], read_class_map),
    "npz": Target(lambda folder: [written(lambda path: np.savez(path.open("wb"), **arrays()), folder)], read_npz),
    "caffemodel": Target(caffemodels, read_caffemodel),
    "pth": Target(checkpoints, read_checkpoint),
    "HDF5": Target(lambda folder: [written(write_hdf5, folder)], read_hdf5, share=0.1, in_suite=False),
    "keras": Target(model_config, read_model, share=0.2, in_suite=False),
    "TFLite": Target(tflite_file, run_tflite, share=0.5, in_suite=False),
}

TEXTS = ["", "{", "[" * 40, "]", "}", '"', "-", "9" * 30, "1e999", "nan", "null", "<", "&a", "*a", "../", "\n", ": "]
NUMBERS = [struct.pack("<I", 2**power) for power in (0, 7, 8, 15, 16, 31)]
TOKENS = [*map(str.encode, TEXTS), *NUMBERS, b"\0", b"\xff", b"\xff" * 4, b"\xff" * 8]


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid file with one to four changes: bytes replaced, inserted, left out or copied, or the end cut off."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        token = draw(st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=3))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "insert", "leave out", "copy", "cut"]))
        if kind == "replace":
            content = content[:start] + token + content[start + len(token) :]
        elif kind == "insert":
            content = content[:start] + token + content[start:]
        elif kind == "leave out":
            content = content[:start] + content[start + draw(st.integers(1, 30)) :]
        elif kind == "copy":
            source = draw(st.integers(0, len(content)))
            content = content[:start] + content[source : source + 20] + content[start:]
        else:
            content = content[:start]
    return content


def is_refused(target: Target, folder: Path, content: bytes) -> bool:
    """Whether a file is refused with a `RefineDetError` whose message can be printed."""
    try:
        target.read(folder, content)
    except RefineDetError as error:
        str(error).encode()
        return True
    return False


def fuzz(name: str, cases: int, seed: int) -> None:
    """Runs the cases of one target and writes a summary to `work/fuzz/NAME.json`; called in a new process."""
    target, results, failures = TARGETS[name], collections.Counter(), {}
    slowest, before = 0.0, None
    with tempfile.TemporaryDirectory() as place:
        seeds = target.seeds(Path(place))
        is_refused(target, Path(place), seeds[0])  # imports what it needs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(damaged(seeds))
        def run(content: bytes) -> None:
            nonlocal slowest
            (FOLDER / f"{name}.case").write_bytes(content)
            faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
            started = time.monotonic()
            try:
                results["refused" if is_refused(target, Path(place), content) else "read"] += 1
            except Exception as error:
                results["failed"] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                failure = f"{type(error).__name__} in {where.filename}:{where.lineno}: {str(error)[:200]}"
                if len(failures) < 20 and failure not in failures:
                    failures[failure] = f"{name}.{len(failures)}.failure"
                    (FOLDER / failures[failure]).write_bytes(content)
            faulthandler.cancel_dump_traceback_later()
            slowest = max(slowest, time.monotonic() - started)

        run()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MAX_MEMORY:
        failures[f"{grown / 2**20:.0f} MiB more memory"] = ""
    summary = {**results, "slowest": round(slowest, 2), "memory_mib": round(grown / 2**20), "failures": failures}
    (FOLDER / f"{name}.json").write_text(json.dumps(summary))


def main() -> None:
    """Runs the targets and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="of all targets together, also with --only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=TARGETS, help="some of the targets, with their part of the cases")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = arguments.only or list(TARGETS)
    whole, failed, total = sum(target.share for target in TARGETS.values()), False, 0
    print(f"{'target':20}{'cases':>8}{'read':>8}{'refused':>9}{'slowest':>10}{'memory':>10}  failures")
    context = multiprocessing.get_context("spawn")
    for name in names:
        cases = round(arguments.cases * TARGETS[name].share / whole)
        (FOLDER / f"{name}.json").unlink(missing_ok=True)
        process = context.Process(target=fuzz, args=(name, cases, arguments.seed))
        process.start()
        process.join()
        if not (FOLDER / f"{name}.json").exists():
            failed = True
            print(f"{name:20} crash or hang (exit code {process.exitcode}) on {FOLDER / name}.case", flush=True)
            continue
        found = json.loads((FOLDER / f"{name}.json").read_text())
        tried = sum(found.get(key, 0) for key in ("read", "refused", "failed"))
        failed, total = failed or bool(found["failures"]), total + tried
        print(
            f"{name:20}{tried:8}{found.get('read', 0):8}{found.get('refused', 0):9}{found['slowest']:8.2f} s"
            f"{found['memory_mib']:6} MiB  {len(found['failures'])}",
            flush=True,
        )
        for failure, file in found["failures"].items():
            print(f"    {failure} ({file})", flush=True)
    print(f"{total} cases, {'with failures' if failed else 'no failure'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
