"""Files of a data set: images by name, and paths that must stay inside the data folder."""

import os
from collections.abc import Iterator
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def find_images(folder: Path) -> Iterator[Path]:
    """Yields the image files in a folder and its sub-folders, in order."""
    yield from (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXTENSIONS and path.is_file())


def image_beside(path: Path) -> Path | None:
    """Returns the image file with the name `path`, which lacks the extension; None if there is none."""
    candidates = (path.with_name(path.name + extension) for extension in EXTENSIONS)
    named = (variant for candidate in candidates for variant in (candidate, upper(candidate)))
    return next((candidate for candidate in named if candidate.is_file()), None)


def upper(path: Path) -> Path:
    """Returns a path with its extension in upper case, as cameras write it."""
    return path.with_suffix(path.suffix.upper())


def is_inside(root: Path, path: Path) -> bool:
    """Returns whether a path, taken literally, is inside a folder; links may lead where the user has put them."""
    root, path = (os.path.abspath(each) for each in (root, path))
    return path.startswith(os.path.join(root, ""))
