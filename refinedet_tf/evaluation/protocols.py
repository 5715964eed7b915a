"""The ways to get from a network to detections under which results are published.

Sources: the paper's text (section 3.4) and the authors' released recipes and test scripts. The two COCO protocols
follow the files released for ResNet-101 at 512 x 512, the only ones known.
"""

import math
from dataclasses import dataclass, field

from refinedet_tf.config import DetectionConfig
from refinedet_tf.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Scale:
    """An input size, and the detections that it may contribute.

    Attributes:
        height: of the input in pixels, a multiple of 64.
        width: likewise.
        follows_orientation: images wider than high exchange height and width.
        longer_above: only boxes whose longer side exceeds this count, in pixels of the original image, both border
            pixels included.
        shorter_below: only boxes whose shorter side is below this count, likewise.
    """

    height: int
    width: int
    follows_orientation: bool = False
    longer_above: float = 0.0
    shorter_below: float = math.inf

    def size_for(self, image_height: int, image_width: int) -> tuple[int, int]:
        """Returns height and width of the input for an image of the given size."""
        if self.follows_orientation and image_width > image_height:
            return self.width, self.height
        return self.height, self.width


@dataclass(frozen=True)
class EvaluationProtocol:
    """How detections are made for an evaluation.

    Attributes:
        detection: thresholds and limits of each pass through the network.
        soft_suppression_iou: soft-NMS with this IoU threshold takes the place of the network's own suppression and
            limits; scores below `detection.score_threshold` are dropped.
        scales: the input sizes; none for the model's own.
        flip: every scale also sees the mirrored image.
        merge: how detections of several passes are merged, `vote` or `soft_vote`.
    """

    detection: DetectionConfig
    soft_suppression_iou: float | None = None
    scales: tuple[Scale, ...] = field(default=())
    flip: bool = False
    merge: str = "vote"


def _square(side: int, shorter_below: float = math.inf) -> Scale:
    return Scale(side, side, shorter_below=shorter_below)


_SCALES_320_START = (
    _square(320),
    Scale(320, 192, follows_orientation=True),
    Scale(192, 192, longer_above=32),
    _square(384, 160),
    _square(448, 128),
    _square(512, 96),
    _square(576, 64),
)
_SCALES_512_START = (
    _square(512),
    Scale(512, 384, follows_orientation=True),
    _square(256),
    _square(384),
)
_RELEASED = DetectionConfig()
_RELEASED_COCO_MULTI = DetectionConfig(score_threshold=0.05, pre_suppression_top_k=400, max_detections=200)

PROTOCOLS = {
    "paper": EvaluationProtocol(DetectionConfig(pre_suppression_top_k=400, max_detections=200)),
    "released": EvaluationProtocol(_RELEASED),
    "released_coco": EvaluationProtocol(DetectionConfig(score_threshold=0.016), soft_suppression_iou=0.30),
    "multi_scale_voc_320": EvaluationProtocol(
        _RELEASED, scales=(*_SCALES_320_START, _square(704, 32)), flip=True, merge="vote"
    ),
    "multi_scale_voc_512": EvaluationProtocol(
        _RELEASED, scales=(*_SCALES_512_START, _square(768, 192), _square(896, 128)), flip=True, merge="vote"
    ),
    "multi_scale_coco_320": EvaluationProtocol(
        _RELEASED_COCO_MULTI,
        scales=(*_SCALES_320_START, _square(640, 48), _square(704, 32)),
        flip=True,
        merge="soft_vote",
    ),
    "multi_scale_coco_512": EvaluationProtocol(
        _RELEASED_COCO_MULTI,
        scales=(
            *_SCALES_512_START,
            _square(640, 224),
            _square(768, 192),
            _square(896, 128),
            _square(1024, 96),
            _square(1152, 64),
        ),
        flip=True,
        merge="soft_vote",
    ),
}


def find_protocol(name: str) -> EvaluationProtocol:
    """Returns the protocol of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(
            f"There is no evaluation protocol {name!r}{did_you_mean(name, PROTOCOLS)}; "
            f"the protocols are {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]
