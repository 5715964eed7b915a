"""Reads recipe files: finds shipped recipes by name, follows `base:`, and returns plain values."""

import datetime
import os
import re
from pathlib import Path
from typing import Any, TextIO

import yaml

from refinedet_tf.errors import ConfigError, did_you_mean

# In an installed package the recipes are inside it; in a checkout they are the folder `configs`.
_PACKAGE = Path(__file__).resolve().parents[1]
RECIPE_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")

MAX_DEPTH = 20


def list_recipes() -> list[str]:
    """Returns the names of the recipes that come with the package, for `load_config` and `--config`."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def read_recipe(name_or_path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """Reads a recipe and those it is based on.

    A recipe that names another as its `base`, a shipped recipe or a path relative to its own folder, replaces the
    values of the base that it gives itself. Mappings are merged key by key, lists are replaced.

    Args:
        name_or_path: the name of a shipped recipe or the path of a YAML file.

    Returns:
        The merged values, without the key `base`, and the path of the recipe for messages.

    Raises:
        ConfigError: a recipe is missing or unreadable, or the bases form a circle.
    """
    path = find_recipe(name_or_path, Path())
    values, chain = read_yaml(path), [path]
    while "base" in values:
        base = values.pop("base")
        described = " -> ".join(os.fspath(entry) for entry in chain)
        if not isinstance(base, str):
            raise ConfigError(f"{described}: base = {base!r}: must be the name or the path of a recipe.")
        try:
            following = find_recipe(base, chain[-1].parent)
        except ConfigError as error:
            raise ConfigError(f"{described}: base: {error}") from None
        if any(following.resolve() == entry.resolve() for entry in chain):
            raise ConfigError(f"{described} -> {following}: the bases form a circle.")
        chain.append(following)
        values = merge(read_yaml(following), values)
    return values, os.fspath(path)


def find_recipe(name_or_path: str | os.PathLike, folder: Path) -> Path:
    """Returns the file of a recipe: a path, relative to a folder, or a shipped recipe's name.

    Raises:
        ConfigError: there is none.
    """
    path = folder / name_or_path
    if path.is_file():
        return path
    name = os.fspath(name_or_path)
    if name in list_recipes():
        return _folder() / f"{name}.yaml"
    raise ConfigError(f"There is no recipe {name!r}{did_you_mean(name, list_recipes())}.")


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Reads one file of sections.

    Raises:
        ConfigError: it is no YAML, has aliases, nests too deeply, or holds anything but text, numbers, lists and
            mappings with names as keys.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = load_yaml(file)
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)} is not a readable recipe: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{os.fspath(path)} is not a recipe: it must hold the sections model, data, train and evaluation."
        )
    check_plain(values, os.fspath(path))
    return values


def load_yaml(source: TextIO | str | bytes) -> Any:
    """Reads YAML's safe subset without aliases, which let a few bytes stand for gigabytes.

    Raises:
        ValueError: the source is no such YAML, nests too deeply, or is not UTF-8.
    """
    try:
        return yaml.load(source, _Loader)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Checks that values hold text, numbers, lists and mappings only, as JSON does.

    Raises:
        ConfigError: they hold something else or nest too deeply.
    """
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where} nests more than {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} must be a name.")
            check_plain(entry, where, depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            check_plain(entry, where, depth + 1)
    elif value is not None and not isinstance(value, str | bool | int | float):
        kind = "date" if isinstance(value, datetime.date) else type(value).__name__
        raise ConfigError(f"{where}: {value!r:.100} is a {kind}; quote it if it is a name.")


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns a base with the changes on top: mappings merged key by key, everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _folder() -> Path:
    return next(folder for folder in RECIPE_FOLDERS if folder.is_dir())


class _Loader(yaml.SafeLoader):
    """YAML's safe subset without aliases; 1e-3 is a number."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", mark)
        return super().compose_node(parent, index)


# YAML 1.1 takes a number in scientific notation without a point for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
