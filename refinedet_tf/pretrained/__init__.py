"""Trained detectors that come with the package. Nothing is downloaded.

`models.yaml` describes each model; `<name>.keras` beside it holds its configuration and its weights in half precision,
as `weights.packing` writes them.
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

_FOLDER = Path(__file__).resolve().parent


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
    entries = yaml.safe_load((_FOLDER / "models.yaml").read_text(encoding="utf-8"))
    return {
        name: PretrainedModel(name=name, path=_FOLDER / f"{name}.keras", **entry) for name, entry in entries.items()
    }
