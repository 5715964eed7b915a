"""Detecting objects in folders of images: pictures with boxes, and results in files."""

import contextlib
import glob
import itertools
import os
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from refinedet_tf.errors import ConfigError, DataError, did_you_mean
from refinedet_tf.inference.background import batched, in_background
from refinedet_tf.inference.detector import BATCH_SIZE, Detections, Detector
from refinedet_tf.inference.images import read_image
from refinedet_tf.inference.results import WITHOUT_EXTENSION, WRITERS, ImageResult
from refinedet_tf.visualization import save_gallery

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
# Pictures with boxes keep these; others become PNG files.
PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
GALLERY_SIZE = 12
READ_AHEAD = 4  # images that wait for detection; each may have 100 MB
WILDCARDS = "*?["


@dataclass(frozen=True)
class ImageFile:
    """An image to detect objects in.

    Attributes:
        path: the file.
        name: its path relative to the input that it was found in, with slashes; results are named after it.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Selection:
    """Which detections are reported.

    Attributes:
        score_threshold: the lowest score.
        only: names of the classes to report; None reports all.
        max_boxes: the most objects in an image, the best ones; None sets no limit.
    """

    score_threshold: float = 0.5
    only: Sequence[str] | None = None
    max_boxes: int | None = None

    def check(self, classes: Sequence[str]) -> None:
        """Raises ConfigError if a model with these classes does not know one of `only`."""
        for name in self.only or ():
            if name not in classes:
                raise ConfigError(f"The model has no class {name!r}{did_you_mean(name, classes)}.")

    def apply(self, found: Detections) -> Detections:
        """Selects among detections that are sorted by score."""
        keep = found.scores >= self.score_threshold
        if self.only is not None:
            keep &= np.isin(found.names, self.only)
        return found[keep][: self.max_boxes]


@dataclass(frozen=True)
class Summary:
    """Counts of a finished `detect_files` run.

    Attributes:
        images: number of images that were read.
        objects: number of objects in them.
        skipped: one reason for each image that could not be read.
    """

    images: int
    objects: int
    skipped: list[str]


def find_images(inputs: Iterable[str | os.PathLike]) -> list[ImageFile]:
    """Finds the images in files, folders and their sub-folders, and patterns.

    Args:
        inputs: image files; folders, in which everything with one of `EXTENSIONS` is taken, sorted by path; or glob
            patterns, in which `**` stands for any number of folders.

    Returns:
        Each image once.

    Raises:
        DataError: an input is missing or holds no image, or two images would have one name.
    """
    found = {}
    for source in map(os.fspath, inputs):
        root, paths = _expand(source)
        for path in paths:
            name = path.relative_to(root).as_posix()
            name = os.fsencode(name).decode(errors="replace")  # a name that is no UTF-8 stays writable
            found.setdefault(path.resolve(), ImageFile(path, name))
    _check_unique([image.name for image in found.values()])
    return list(found.values())


def _expand(source: str) -> tuple[Path, list[Path]]:
    """Returns the images of one input, and the folder that their names are relative to."""
    path = Path(source)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        root, paths = path, [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    elif any(character in source for character in WILDCARDS):
        fixed = itertools.takewhile(lambda part: not any(character in part for character in WILDCARDS), path.parts)
        root, paths = Path(*fixed), [Path(match) for match in glob.glob(source, recursive=True)]
    else:
        raise DataError(f"There is no image or folder {source!r}.")
    images = sorted(entry for entry in paths if entry.suffix.lower() in EXTENSIONS and entry.is_file())
    if not images:
        raise DataError(f"{source} holds no image ({', '.join(EXTENSIONS)}).")
    return root, images


def detect_files(
    detector: Detector,
    images: Sequence[ImageFile],
    output_dir: str | os.PathLike,
    *,
    selection: Selection | None = None,
    formats: Sequence[str] = ("json",),
    labels: bool = True,
    crops: bool = False,
    gallery: str | os.PathLike | None = None,
    model_name: str = "",
) -> Summary:
    """Detects objects in image files; writes pictures with boxes and the results, image by image.

    Images that cannot be read, or have more than `MAX_PIXELS` pixels, are skipped and listed.

    Args:
        detector: the model.
        images: as `find_images` returns them. Those inside `output_dir` are results of an earlier run and left out.
        output_dir: the folder to write, made if missing. A picture has the name of its image; one whose format is not
            among `PICTURE_EXTENSIONS` becomes a PNG file.
        selection: which detections are reported.
        formats: keys of `results.WRITERS`.
        labels: whether to write class names and scores on the pictures.
        crops: whether to write each object as an image of its own, `crops/CLASS/NAME_NUMBER.jpg`.
        gallery: a PNG file to write, with the first `GALLERY_SIZE` pictures side by side.
        model_name: how `detections.json` names the model.

    Raises:
        ConfigError: there is no such format, or the model does not have a class that `selection` names.
        DataError: a picture would overwrite an image or another picture's results, or no image can be read.
        OSError: a result cannot be written. What was done before is complete.
    """
    selection = selection or Selection()
    selection.check(detector.classes)
    output_dir = Path(output_dir)
    images = _outside(images, output_dir)
    _check_results(images, output_dir, formats)
    output_dir.mkdir(parents=True, exist_ok=True)
    ids = image_ids(images)
    settings = {"model": model_name, "score_threshold": selection.score_threshold}

    count, objects, skipped, pictures = 0, 0, [], []
    with contextlib.ExitStack() as stack:
        writers = [WRITERS[name](output_dir, detector.classes, settings) for name in formats]
        for writer in writers:
            stack.callback(writer.close)
        pixels = stack.enter_context(contextlib.closing(in_background(_read(images), READ_AHEAD)))
        progress = stack.enter_context(tqdm(total=len(images), unit="image", disable=None))
        for batch in batched(pixels, BATCH_SIZE):
            readable = [content for _, content in batch if isinstance(content, np.ndarray)]
            found = iter(detector.detect(readable, selection.score_threshold))
            for index, content in batch:
                image = images[index]
                file = os.fsencode(image.path).decode(errors="replace")
                progress.update()
                if isinstance(content, DataError):
                    skipped.append(str(content))
                    for writer in writers:
                        writer.skip(file, str(content))
                    continue
                detections = selection.apply(next(found))
                picture = detections.draw(content, labels)
                save_picture(picture, output_dir / picture_name(image.name))
                if crops:
                    save_crops(content, detections, image.name, output_dir / "crops")
                height, width = content.shape[:2]
                result = ImageResult(file, image.name, ids[index], width, height, detections)
                for writer in writers:
                    writer.add(result)
                count, objects = count + 1, objects + len(detections)
                if gallery and len(pictures) < GALLERY_SIZE:
                    pictures.append(picture)
    if not count:
        raise DataError(f"None of the {len(images)} images could be read. {skipped[0]}")
    if gallery:
        save_gallery(pictures, gallery)
    return Summary(count, objects, skipped)


def image_ids(images: Sequence[ImageFile]) -> list[int]:
    """Returns ids for COCO files: the numbers in the names (000000000139.jpg) if all differ, otherwise 1, 2, 3..."""
    stems = [PurePosixPath(image.name).stem for image in images]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return list(map(int, stems))
    return list(range(1, len(images) + 1))


def picture_name(name: str) -> str:
    """Returns the file name of an image's picture with boxes."""
    return name if PurePosixPath(name).suffix.lower() in PICTURE_EXTENSIONS else f"{name}.png"


def save_picture(pixels: np.ndarray, path: Path) -> None:
    """Writes uint8 RGB `[h, w, 3]`; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_crops(image: np.ndarray, found: Detections, name: str, folder: Path) -> None:
    """Writes each object as `CLASS/NAME_NUMBER.jpg`, NAME without its extension, numbers by rank from 1 on.

    Slashes in a class name become underscores.
    """
    height, width = image.shape[:2]
    stem = PurePosixPath(name).with_suffix("")
    for number, (label, box) in enumerate(zip(found.names, found.boxes, strict=True), start=1):
        left, top = np.floor(box[:2] * (width, height)).astype(int)
        right, bottom = np.ceil(box[2:] * (width, height)).astype(int)
        path = folder / label.replace("/", "_") / f"{stem}_{number}.jpg"
        save_picture(image[top:bottom, left:right], path)


def _read(images: Sequence[ImageFile]) -> Generator[tuple[int, np.ndarray | DataError], None, None]:
    """Yields the index and the pixels of each image, or the error if it cannot be read."""
    for index, image in enumerate(images):
        try:
            yield index, read_image(image.path)
        except DataError as error:
            yield index, error


def _outside(images: Sequence[ImageFile], output_dir: Path) -> list[ImageFile]:
    """Leaves out the results of an earlier run, if the folder for results is inside that of the images."""
    folder = output_dir.resolve()

    def is_result(image: ImageFile) -> bool:
        path = image.path.resolve()
        root = path.parents[len(PurePosixPath(image.name).parts) - 1]
        return root in folder.parents and folder in path.parents

    outside = [image for image in images if not is_result(image)]
    if not outside:
        raise DataError(f"All images are in {output_dir}, the folder for the results.")
    return outside


def _check_results(images: Sequence[ImageFile], output_dir: Path, formats: Sequence[str]) -> None:
    for name in formats:
        if name not in WRITERS:
            raise ConfigError(f"There is no format {name!r}{did_you_mean(name, WRITERS)}; use {', '.join(WRITERS)}.")
    sources = {image.path.resolve() for image in images}
    for image in images:
        if (output_dir / picture_name(image.name)).resolve() in sources:
            raise DataError(f"The results would overwrite {image.path}; name another folder than {output_dir}.")
    _check_unique([picture_name(image.name) for image in images])
    if any(name in WITHOUT_EXTENSION for name in formats):
        _check_unique([PurePosixPath(image.name).with_suffix("").as_posix() for image in images])


def _check_unique(names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"Several images are named {repeated[0]}; detect in one folder at a time.")
