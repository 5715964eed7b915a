"""A recipe in which every value differs from its default, but for the two that belong to backbone keras_cv."""

from refinedet_tf.config import (
    AugmentationConfig,
    BackboneConfig,
    Config,
    DataConfig,
    DetectionConfig,
    KerasCvLayerConfig,
    ModelConfig,
    TrainConfig,
)

CHANGED = Config(
    model=ModelConfig(
        classes=["cat", "dog"],
        input_size=[128, 64],
        resize="letterbox",
        backbone=BackboneConfig(
            "mobilenet_v1", 0.25, preprocessing="torch", frozen_stages=2, freeze_batch_norm=True
        ),
        width=8,
        separable=True,
        batch_norm=True,
        head_blocks=True,
        upsampling="resize",
        two_step_regression=False,
        transfer_connection=False,
        anchor_sizes=[20.0, 40.0, 80.0, 160.5],
        arm_positive_iou=0.7,
        arm_negative_iou=0.3,
        objectness_threshold=0.05,
        negative_ratio=2.0,
        detection=DetectionConfig(0.05, 0.5, 400, 20),
    ),
    data=DataConfig(
        "coco",
        ["a", "b"],
        ["c"],
        7,
        True,
        AugmentationConfig(False, 2.0, False, False, False, [KerasCvLayerConfig("Mosaic", {"offset": [0.4, 0.6]})]),
    ),
    train=TrainConfig(
        epochs=3,
        batch_size=5,
        optimizer="adam",
        learning_rate=0.5,
        schedule="cosine",
        decay_epochs=[1, 2],
        decay_rate=0.2,
        warmup_steps=9,
        momentum=0.8,
        weight_decay=0.25,
        clip_norm=1.5,
        precision="mixed_bfloat16",
        jit_compile=True,
        seed=4,
        weights="some.file",
        evaluate_every=2,
    ),
)
