"""Reading and writing recipes. Overrides and type checks are OmegaConf's."""

import dataclasses
import os
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from refinedet_tf.config.schema import Config, ModelConfig
from refinedet_tf.config.validation import validate, validate_model
from refinedet_tf.errors import ConfigError, did_you_mean


def load_config(path: str | os.PathLike, overrides: list[str] | None = None) -> Config:
    """Reads a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value` strings that win over the file, e.g. `["train.batch_size=8"]`.

    Returns:
        The validated recipe.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown, or a value is unusable.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"There is no recipe {os.fspath(path)!r}.")
    try:
        with open(path, encoding="utf-8") as file:
            recipe = yaml.safe_load(file) or {}
        changes = OmegaConf.from_dotlist(list(overrides or []))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{os.fspath(path)} is no readable recipe: {error}") from error
    if not isinstance(recipe, dict):
        raise ConfigError(f"{os.fspath(path)} is no recipe: it must hold the sections model, data and train.")
    return _typed(Config, recipe, changes, where=os.fspath(path))


def model_config(values: dict[str, Any]) -> ModelConfig:
    """The `model` section from plain values, as a saved model carries it.

    Raises:
        ConfigError: as `load_config`.
    """
    return _typed(ModelConfig, OmegaConf.create(values), where="the model's configuration")


def save_config(config: Config, path: str | os.PathLike) -> None:
    """Writes a recipe that `load_config` reads back as it is."""
    OmegaConf.save(OmegaConf.structured(config), path)


def as_dict(config: ModelConfig) -> dict[str, Any]:
    """A section as plain nested values, for JSON."""
    return dataclasses.asdict(config)


def _typed(schema: type, *layers: Any, where: str) -> Any:
    """Merges OmegaConf layers onto a schema and returns its dataclass, checked."""
    structured = OmegaConf.structured(schema)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(structured, *layers))
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
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{where}: {error.full_key or 'the recipe'}: {reason}.") from error
    try:
        (validate if isinstance(config, Config) else validate_model)(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return config
