"""Turns plain values into a typed recipe and back. Overrides and type checks are OmegaConf's."""

import dataclasses
import os
import re
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from refinedet_tf.config.recipes import check_plain, read_recipe
from refinedet_tf.config.schema import Config, ModelConfig
from refinedet_tf.config.validation import validate, validate_model
from refinedet_tf.errors import ConfigError, did_you_mean


def load_config(path: str | os.PathLike, overrides: list[str] | None = None) -> Config:
    """Reads a recipe.

    Args:
        path: the name of a shipped recipe, one of `list_recipes()`, or the path of a YAML file.
        overrides: `section.key=value` strings that replace values of the file, e.g. `["train.batch_size=8"]`.

    Returns:
        The validated recipe.

    Raises:
        ConfigError: the recipe or its base is missing or unreadable, a key is unknown, or a value is unusable.
    """
    values, where = read_recipe(path)
    try:
        changes = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides or [])), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: unreadable override among {', '.join(overrides)}: {error}") from error
    check_plain(changes, "overrides")
    return _typed(Config, values, changes, where=where)


def model_config(values: dict[str, Any]) -> ModelConfig:
    """Builds the `model` section from plain values, as a saved model carries it.

    Raises:
        ConfigError: a key is unknown or a value is unusable.
    """
    where = "the model's configuration"
    check_plain(values, where)
    return _typed(ModelConfig, values, where=where)


def save_config(config: Config, path: str | os.PathLike) -> None:
    """Writes a complete recipe, which `load_config` reads back unchanged."""
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(dataclasses.asdict(config), file, sort_keys=False, allow_unicode=True)


def as_dict(config: ModelConfig) -> dict[str, Any]:
    """Returns a section as plain nested values, for JSON."""
    return dataclasses.asdict(config)


def _typed(schema: type, *layers: dict[str, Any], where: str) -> Any:
    """Merges plain values onto a schema and returns its dataclass, checked."""
    structured = OmegaConf.structured(schema)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(structured, *map(_without_interpolation, layers)))
    except ConfigKeyError as error:
        section = error.parent_node if error.parent_node is not None else structured
        known = [str(key) for key in section] if OmegaConf.is_config(section) else []
        raise ConfigError(
            f"{where}: unknown key {error.full_key!r}{did_you_mean(str(error.key), known)}; "
            f"known here: {', '.join(known)}."
        ) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{where}: {error.full_key or 'classes'} must be given.") from error
    except TypeError as error:  # OmegaConf's answer to an override such as `model.classes.0=cat`
        raise ConfigError(f"{where}: a list cannot be given as single keys, nor keys as a list.") from error
    except OverflowError as error:  # its answer to an infinite integer
        raise ConfigError(f"{where}: a number is too large: {error}.") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{where}: {error.full_key or 'the recipe'}: {reason}.") from error
    try:
        (validate if isinstance(config, Config) else validate_model)(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return config


def _without_interpolation(value: Any) -> Any:
    """Escapes `${...}`, which OmegaConf would replace, for instance by an environment variable: values are data."""
    if isinstance(value, dict):
        return {key: _without_interpolation(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_interpolation(entry) for entry in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    return value
