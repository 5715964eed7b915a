"""Trained detectors that come with the package. Nothing is downloaded.

They lie in the folder `pretrained` of the package: `models.yaml` describes each model, `<name>.keras` holds its
configuration and its weights in half precision, as `packing` writes them.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from refinedet_tf.config.recipes import load_yaml
from refinedet_tf.errors import WeightFileError, did_you_mean

_FOLDER = Path(__file__).resolve().parents[1] / "pretrained"


@dataclass(frozen=True)
class PretrainedModel:
    """A trained detector that comes with the package.

    Attributes:
        name: what `load_model`, `Detector.load` and `--model` take.
        description: network, input size and objects, in a line.
        data: the images it was trained on, and those it was evaluated on.
        ap_11_point: mean average precision at IoU 0.5 by VOC 2007's protocol, 0..1.
        ap_area: the same by VOC 2010's.
        card: the page about the model, in the repository.
        path: its .keras file.
    """

    name: str
    description: str
    data: str
    ap_11_point: float
    ap_area: float
    card: str
    path: Path = field(repr=False)


def pretrained_models() -> dict[str, PretrainedModel]:
    """Returns the trained detectors that come with the package, by name.

    A name can be given wherever a .keras file can: to `load_model`, `Detector.load`, `load_weights`, `train.weights`,
    and to the commands as `--model` or `--weights`.
    """
    entries = load_yaml((_FOLDER / "models.yaml").read_text(encoding="utf-8"))
    return {
        name: PretrainedModel(name=name, path=_FOLDER / f"{name}.keras", **entry) for name, entry in entries.items()
    }


def find_file(name_or_path: str | os.PathLike, kind: str) -> str | os.PathLike:
    """Returns the file of a pretrained model for its name, and the path of any other file as it is.

    Args:
        name_or_path: a name of `pretrained_models`, or a path.
        kind: what the file is called in the error.

    Raises:
        WeightFileError: it is neither a name nor a file.
    """
    models = pretrained_models()
    if name_or_path in models:
        return models[name_or_path].path
    if not os.path.isfile(name_or_path):
        suggestion = did_you_mean(os.fspath(name_or_path), models)
        raise WeightFileError(f"There is no {kind} file {os.fspath(name_or_path)!r}{suggestion}.")
    return name_or_path
