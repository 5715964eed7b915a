"""Runs a model by a protocol: at one scale or at many, with the authors' ways to combine detections."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow import keras
from tqdm import tqdm

from refinedet_tf.config import as_dict
from refinedet_tf.data.examples import Example
from refinedet_tf.data.pipeline import image_pipeline
from refinedet_tf.evaluation.images import ImageDetections
from refinedet_tf.evaluation.merging import soft_suppress, soft_vote, vote
from refinedet_tf.evaluation.protocols import EvaluationProtocol, Scale
from refinedet_tf.model import RefineDet
from refinedet_tf.ops.anchors import generate_anchors
from refinedet_tf.ops.detections import decode_predictions, suppress
from refinedet_tf.ops.resizing import Resizing

# Images, float32 [b, height, width, 3], to the detections of the whole batch: boxes [b, k, 4] relative to the input,
# scores [b, k], classes [b, k], num_detections [b].
DetectAtSize = Callable[[tf.Tensor], dict[str, tf.Tensor]]


class ProtocolDetector:
    """Detects in images of any size as a protocol prescribes.

    The network is rebuilt for each input size from the model's own layers when that size is first needed; all sizes
    share the weights. One image, or an image and its mirror image, is in memory at a time.
    """

    def __init__(self, model: RefineDet, protocol: EvaluationProtocol):
        """Prepares a model; nothing is compiled before it is needed."""
        self.protocol = protocol
        self._scales = protocol.scales or (Scale(*model.resizing.size),)
        self._networks = NetworkAtSizes(model, protocol)
        self._resize_mode = model.resizing.mode

    def detect_all(self, examples: Sequence[Example]) -> list[ImageDetections]:
        """Returns the detections of each image in pixels of the original, with a progress bar."""
        images = image_pipeline(examples)
        return [self.detect(image[0]) for image in tqdm(images, "Detecting", len(examples), unit="image", disable=None)]

    def detect(self, image: tf.Tensor) -> ImageDetections:
        """Returns the detections of one image, uint8 `[h, w, 3]`, in pixels of it, best first."""
        return detect_by_protocol(image, self._networks, self.protocol, self._scales, self._resize_mode)


class NetworkAtSizes:
    """A model's detections at any input size; `networks[height, width]` is a function as `DetectAtSize`."""

    def __init__(self, model: RefineDet, protocol: EvaluationProtocol):
        self.model = model
        self.protocol = protocol
        self._functions: dict[tuple[int, int], DetectAtSize] = {}

    def __getitem__(self, size: tuple[int, int]) -> DetectAtSize:
        """Returns the function of an input size, and builds it when it is asked for the first time."""
        if size not in self._functions:
            self._functions[size] = self._build(size)
        return self._functions[size]

    def _build(self, size: tuple[int, int]) -> DetectAtSize:
        config, protocol = self.model.config, self.protocol
        network = network_at_size(self.model, size)
        anchors = tf.constant(generate_anchors(size, config.anchor_sizes))
        threshold = protocol.detection.score_threshold

        @tf.function(input_signature=[tf.TensorSpec([None, *size, 3], tf.float32)], autograph=False)
        def detect(images: tf.Tensor) -> dict[str, tf.Tensor]:
            predictions = network(images, training=False)
            boxes, scores = decode_predictions(predictions, anchors, config.objectness_threshold)
            if protocol.soft_suppression_iou is None:
                return suppress(boxes, scores, **as_dict(protocol.detection))
            return _candidates(boxes, scores, threshold)

        return detect.get_concrete_function()


def network_at_size(model: RefineDet, size: tuple[int, int]) -> keras.Model:
    """Returns a network of a model's own layers, and so its weights, for inputs of another size.

    Args:
        model: the model, which is not changed.
        size: height and width in pixels, multiples of 64.
    """
    if size == model.resizing.size:
        return model
    # Keras calls every layer again on the new input; a layer that is not copied keeps its weights.
    return keras.models.clone_model(
        model, input_tensors=keras.Input((*size, 3), name="images"), clone_function=lambda layer: layer
    )


def detect_by_protocol(
    image: tf.Tensor,
    networks: "NetworkAtSizes | dict[tuple[int, int], DetectAtSize]",
    protocol: EvaluationProtocol,
    scales: Sequence[Scale],
    resize_mode: str = "warp",
) -> ImageDetections:
    """Runs all passes of a protocol on one image and merges their detections.

    Args:
        image: uint8 `[h, w, 3]`.
        networks: by input size, the function that detects.
        protocol: suppression, flip and merging.
        scales: the input sizes to run.
        resize_mode: `warp` or `letterbox`, as the model was trained.

    Returns:
        Detections in pixels of the image, best first. A single pass is returned as it is. Otherwise boxes are clipped
        to the image before they are combined.
    """
    height, width = image.shape[0], image.shape[1]
    images = tf.stack([image, image[:, ::-1]] if protocol.flip else [image])
    passes = []
    for scale in scales:
        size = scale.size_for(height, width)
        resizing = Resizing(*size, resize_mode)
        found = networks[size](resizing.resize(images))
        boxes = resizing.boxes_to_image(found["boxes"], [height, width])
        found = {name: np.asarray(value) for name, value in {**found, "boxes": boxes}.items()}
        for index, mirrored in enumerate([False, True][: len(images)]):
            passes.append(_pass_detections(found, index, (height, width), mirrored=mirrored))
            if len(scales) > 1 or protocol.flip or protocol.soft_suppression_iou is not None:
                passes[-1] = _filter(_clip(passes[-1], height, width), scale)
    if protocol.soft_suppression_iou is not None:
        passes = [_soft_suppress(each, protocol) for each in passes]
    return passes[0] if len(passes) == 1 else _merge(passes, protocol)


def _candidates(boxes: tf.Tensor, scores: tf.Tensor, score_threshold: float) -> dict[str, tf.Tensor]:
    """Returns every box and class whose score exceeds the threshold, without suppression."""
    batch, _, class_count = tf.unstack(tf.shape(scores))
    flat = tf.reshape(scores, [batch, -1])
    longest = tf.reduce_max(tf.reduce_sum(tf.cast(flat > score_threshold, tf.int32), axis=1))
    values, indices = tf.math.top_k(flat, k=longest)
    return {
        "boxes": tf.gather(boxes, indices // class_count, batch_dims=1),
        "scores": values,
        "classes": indices % class_count,
        "num_detections": tf.reduce_sum(tf.cast(values > score_threshold, tf.int32), axis=1),
    }


def _pass_detections(
    found: dict[str, np.ndarray], index: int, image_size: tuple[int, int], *, mirrored: bool
) -> ImageDetections:
    """Returns one image's detections in pixels; those of the mirrored image are mirrored back, x' = width - x."""
    height, width = image_size
    valid = slice(int(found["num_detections"][index]))
    boxes = found["boxes"][index, valid].astype(np.float64) * (width, height, width, height)
    if mirrored:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return ImageDetections(boxes, found["scores"][index, valid], found["classes"][index, valid])


def _clip(found: ImageDetections, height: int, width: int) -> ImageDetections:
    return ImageDetections(np.clip(found.boxes, 0, (width, height) * 2), found.scores, found.classes)


def _filter(found: ImageDetections, scale: Scale) -> ImageDetections:
    sides = found.boxes[:, 2:] - found.boxes[:, :2] + 1
    keep = (sides.max(axis=1) > scale.longer_above) & (sides.min(axis=1) < scale.shorter_below)
    return ImageDetections(found.boxes[keep], found.scores[keep], found.classes[keep])


def _soft_suppress(found: ImageDetections, protocol: EvaluationProtocol) -> ImageDetections:
    limits = {
        "iou_threshold": protocol.soft_suppression_iou,
        "score_threshold": protocol.detection.score_threshold,
    }
    return _by_class(found, lambda boxes, scores: soft_suppress(boxes, scores, **limits))


def _merge(passes: Sequence[ImageDetections], protocol: EvaluationProtocol) -> ImageDetections:
    together = ImageDetections(
        *(np.concatenate([getattr(each, name) for each in passes]) for name in ("boxes", "scores", "classes"))
    )
    if protocol.merge == "vote":
        return _by_class(together, vote)
    threshold = protocol.detection.score_threshold
    return _by_class(together, lambda boxes, scores: soft_vote(boxes, scores, score_threshold=threshold))


def _by_class(
    found: ImageDetections, combine: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> ImageDetections:
    """Combines the boxes of each class and sorts all results by score."""
    boxes, scores, classes = [np.zeros([0, 4])], [np.zeros(0)], [np.zeros(0, np.int32)]
    for index in np.unique(found.classes):
        mine = found.classes == index
        combined_boxes, combined_scores = combine(found.boxes[mine], found.scores[mine])
        boxes.append(combined_boxes)
        scores.append(combined_scores)
        classes.append(np.full(len(combined_scores), index, np.int32))
    boxes, scores, classes = np.concatenate(boxes), np.concatenate(scores), np.concatenate(classes)
    order = np.argsort(-scores, kind="stable")
    return ImageDetections(boxes[order], scores[order], classes[order])
