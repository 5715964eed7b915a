"""Protocols: their constants, and their passes through a network or something that behaves like one."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from refinedet_tf.config import EVALUATION_PROTOCOLS, DetectionConfig
from refinedet_tf.data.examples import Example, ExampleSet
from refinedet_tf.errors import ConfigError
from refinedet_tf.evaluation.evaluator import evaluate
from refinedet_tf.evaluation.merging import soft_suppress
from refinedet_tf.evaluation.prediction import NetworkAtSizes, ProtocolDetector, detect_by_protocol, network_at_size
from refinedet_tf.evaluation.protocols import PROTOCOLS, EvaluationProtocol, Scale, find_protocol
from refinedet_tf.inference.detector import Detector
from refinedet_tf.model import RefineDet
from refinedet_tf.ops.detections import decode_predictions

SINGLE = EvaluationProtocol(DetectionConfig())


def passes(name):
    """(height, width, follows the orientation, longer side above, shorter side below) of each scale."""
    return [dataclasses.astuple(scale) for scale in PROTOCOLS[name].scales]


def square(side, below=math.inf):
    return (side, side, False, 0.0, below)


def test_constants_of_single_scale_protocols():
    assert PROTOCOLS["paper"].detection == DetectionConfig(0.01, 0.45, 400, 200)
    assert PROTOCOLS["released"].detection == DetectionConfig(0.01, 0.45, 1000, 500)
    assert PROTOCOLS["released_coco"].detection.score_threshold == 0.016
    assert PROTOCOLS["released_coco"].soft_suppression_iou == 0.30
    for name in ("paper", "released", "released_coco"):
        assert PROTOCOLS[name].scales == () and not PROTOCOLS[name].flip
    assert PROTOCOLS["paper"].soft_suppression_iou is PROTOCOLS["released"].soft_suppression_iou is None


def test_constants_of_multi_scale_protocols():
    start_320 = [square(320), (320, 192, True, 0.0, math.inf), (192, 192, False, 32, math.inf), square(384, 160),
                 square(448, 128), square(512, 96), square(576, 64)]  # fmt: skip
    start_512 = [square(512), (512, 384, True, 0.0, math.inf), square(256), square(384)]
    assert passes("multi_scale_voc_320") == [*start_320, square(704, 32)]
    assert passes("multi_scale_coco_320") == [*start_320, square(640, 48), square(704, 32)]
    assert passes("multi_scale_voc_512") == [*start_512, square(768, 192), square(896, 128)]
    assert passes("multi_scale_coco_512") == [*start_512, square(640, 224), square(768, 192), square(896, 128),
                                              square(1024, 96), square(1152, 64)]  # fmt: skip
    for name, protocol in PROTOCOLS.items():
        if name.startswith("multi_scale"):
            assert protocol.flip and protocol.soft_suppression_iou is None
            voc = "voc" in name
            assert protocol.merge == ("vote" if voc else "soft_vote")
            expected = DetectionConfig(0.01, 0.45, 1000, 500) if voc else DetectionConfig(0.05, 0.45, 400, 200)
            assert protocol.detection == expected


def test_recipes_know_the_protocols():
    assert tuple(PROTOCOLS) == EVALUATION_PROTOCOLS


def test_an_unknown_protocol_is_named():
    with pytest.raises(ConfigError, match=r"no evaluation protocol 'relased' .did you mean 'released'"):
        find_protocol("relased")


def test_the_long_side_follows_the_image():
    scale = Scale(320, 192, follows_orientation=True)
    assert scale.size_for(500, 375) == (320, 192)
    assert scale.size_for(400, 400) == (320, 192)
    assert scale.size_for(375, 500) == (192, 320)
    assert Scale(320, 192).size_for(375, 500) == (320, 192)


def test_networks_of_all_sizes_share_the_weights(tiny_model, tiny_config, tiny_images):
    network = network_at_size(tiny_model, (128, 64))
    assert all(one is other for one, other in zip(network.weights, tiny_model.weights, strict=True))
    rebuilt = RefineDet(dataclasses.replace(tiny_config, input_size=[128, 64]))
    rebuilt.set_weights(tiny_model.get_weights())
    images = tf.image.resize(tiny_images, [128, 64])
    expected = rebuilt(images, training=False)
    for name, value in network(images, training=False).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)
    assert network_at_size(tiny_model, (64, 128)) is tiny_model


def photo(tiny_images, height=90, width=150):
    return tf.cast(tf.image.resize(tiny_images[0], [height, width]), tf.uint8)


def test_one_scale_without_flip_is_the_ordinary_result(tiny_model, tiny_images):
    image = photo(tiny_images)
    expected = Detector.from_model(tiny_model).predict([image[tf.newaxis]])
    count = int(expected["num_detections"][0])
    assert count > 3
    for protocol in (SINGLE, dataclasses.replace(SINGLE, scales=(Scale(64, 128),))):
        found = ProtocolDetector(tiny_model, protocol).detect(image)
        np.testing.assert_allclose(found.scores, expected["scores"][0, :count], atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected["boxes"][0, :count] * [150, 90, 150, 90], atol=1e-2)
        np.testing.assert_array_equal(found.classes, expected["classes"][0, :count])


def test_the_protocol_decides_on_thresholds_and_limits(tiny_model, tiny_images):
    image = photo(tiny_images)
    every = ProtocolDetector(tiny_model, SINGLE).detect(image)
    cut = dataclasses.replace(SINGLE, detection=DetectionConfig(max_detections=3))
    np.testing.assert_allclose(ProtocolDetector(tiny_model, cut).detect(image).scores, every.scores[:3], rtol=1e-6)


def test_soft_suppression_sees_every_candidate(tiny_model, tiny_images):
    image = photo(tiny_images)
    boxes, scores = decode_predictions(
        tiny_model(tiny_model.resizing.resize(image[tf.newaxis]), training=False),
        tiny_model.anchors,
        tiny_model.config.objectness_threshold,
    )
    boxes = np.clip(boxes[0].numpy().astype(np.float64) * [150, 90, 150, 90], 0, [150, 90, 150, 90])
    threshold = float(np.quantile(scores, 0.9))
    protocol = EvaluationProtocol(DetectionConfig(score_threshold=threshold), soft_suppression_iou=0.3)
    found = ProtocolDetector(tiny_model, protocol).detect(image)
    assert len(found.scores) > 10
    for index in range(3):
        mine = scores[0, :, index].numpy() > threshold
        expected_boxes, expected_scores = soft_suppress(
            boxes[mine], scores[0, :, index].numpy()[mine], iou_threshold=0.3, score_threshold=threshold
        )
        same = found.classes == index
        np.testing.assert_allclose(found.scores[same], expected_scores, rtol=1e-4)
        np.testing.assert_allclose(found.boxes[same], expected_boxes, atol=1e-2)


class BrightSpots(dict):
    """Stands for a network at any size: finds the extent of the red and of the green pixels of its input."""

    def __missing__(self, size):
        def detect(images):
            boxes = np.zeros([len(images), 2, 4], np.float32)
            for index, image in enumerate(np.asarray(images)):
                for channel in range(2):
                    rows, columns = np.nonzero(image[..., channel] > 127)
                    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    boxes[index, channel] = np.array(corners) / [size[1], size[0], size[1], size[0]]
            return {
                "boxes": tf.constant(boxes),
                "scores": tf.tile([[0.9, 0.8]], [len(images), 1]),
                "classes": tf.tile([[0, 1]], [len(images), 1]),
                "num_detections": tf.fill([len(images)], 2),
            }

        self[size] = detect
        return detect


def spots(height, width, red, green):
    image = np.zeros([height, width, 3], np.uint8)
    for channel, (xmin, ymin, xmax, ymax) in enumerate([red, green]):
        image[ymin:ymax, xmin:xmax, channel] = 255
    return tf.constant(image)


@pytest.mark.parametrize("resize_mode", ["warp", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(240, 320), (333, 201), (256, 256)])
def test_mirrored_and_rescaled_passes_give_the_same_boxes_to_a_pixel(height, width, resize_mode):
    red, green = [20, 30, 61, 75], [100, 120, 180, 200]
    image = spots(height, width, red, green)
    for scale in PROTOCOLS["multi_scale_voc_320"].scales:
        unfiltered = (dataclasses.replace(scale, longer_above=0.0, shorter_below=math.inf),)
        for flip in (False, True):
            protocol = dataclasses.replace(SINGLE, flip=flip, scales=unfiltered)
            found = detect_by_protocol(image, BrightSpots(), protocol, unfiltered, resize_mode)
            tolerance = 0.6 * max(height / scale.width, width / scale.width, 1) + 0.5
            np.testing.assert_allclose(found.boxes, [red, green], atol=tolerance)
            np.testing.assert_array_equal(found.classes, [0, 1])
    whole = dataclasses.replace(PROTOCOLS["multi_scale_voc_320"])
    found = detect_by_protocol(image, BrightSpots(), whole, whole.scales, resize_mode)
    np.testing.assert_allclose(found.boxes, [red, green], atol=1)


def test_sizes_are_filtered_in_pixels_of_the_image_with_the_last_pixel():
    # 31 pixels wide and 20 high, and 60 x 40.
    image = spots(128, 128, [10, 10, 41, 30], [60, 60, 120, 100])
    protocol = dataclasses.replace(SINGLE, scales=(Scale(128, 128),) * 2)

    def kept(**limits):
        scales = (Scale(128, 128, **limits),) * 2
        return detect_by_protocol(image, BrightSpots(), protocol, scales).classes.tolist()

    assert kept() == [0, 1]
    assert kept(longer_above=31.9) == [0, 1]
    assert kept(longer_above=32) == [1]
    assert kept(shorter_below=41.1) == [0, 1]
    assert kept(shorter_below=41) == [0]
    assert kept(shorter_below=21) == []


def test_mirroring_counts_from_the_right_border():
    # A box that ends at the right border begins at 0 in the mirrored image, and comes back to the border.
    image = spots(64, 128, [100, 0, 128, 64], [0, 10, 30, 20])
    found = detect_by_protocol(
        image, BrightSpots(), dataclasses.replace(SINGLE, flip=True, scales=(Scale(64, 128),)), (Scale(64, 128),)
    )
    np.testing.assert_array_equal(found.boxes, [[100, 0, 128, 64], [0, 10, 30, 20]])


def test_networks_are_built_when_they_are_needed(tiny_model, tiny_images):
    networks = NetworkAtSizes(tiny_model, SINGLE)
    assert not networks._functions
    assert networks[128, 128] is networks[128, 128]
    assert list(networks._functions) == [(128, 128)]


def test_evaluation_by_protocol(tiny_model, tiny_config, tiny_images, tmp_path):
    path = tmp_path / "0.png"
    path.write_bytes(tf.io.encode_png(photo(tiny_images)).numpy())
    found = ProtocolDetector(tiny_model, PROTOCOLS["paper"]).detect(photo(tiny_images))
    boxes = np.clip(found.boxes[:2] / [150, 90, 150, 90], 0, 1).astype(np.float32)
    flags = np.zeros(2, bool)
    example = Example("0", str(path), 90, 150, boxes, found.classes[:2], flags, flags)
    data = ExampleSet([example], tiny_config.classes, [])
    result = evaluate(tiny_model, data, protocol="paper")
    assert result.coco_ap > 0.5
    np.testing.assert_allclose(result.detections[0].boxes, found.boxes, atol=1e-3)
    with pytest.raises(ConfigError, match="needs a Keras model"):
        evaluate(Detector.from_model(tiny_model), data, protocol="paper")
