"""What is in a recipe, and what each setting means."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

# The module of refinedet_tf/backbones that builds each backbone.
BACKBONES = {
    "vgg16": "vgg16",
    "resnet101": "resnet101",
    "mobilenet_v1": "mobilenet",
    "mobilenet_v2": "mobilenet",
    "mobilenet_v3_small": "mobilenet",
    "mobilenet_v3_large": "mobilenet",
    "efficientnet_lite0": "efficientnet_lite",
    "efficientnet_lite1": "efficientnet_lite",
    "efficientnet_lite2": "efficientnet_lite",
    "keras_cv": "kerascv",
}
PREPROCESSING_MODES = ("caffe", "tf", "torch", "lite", "none")
RESIZE_MODES = ("warp", "letterbox")
UPSAMPLING = ("deconvolution", "resize")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("multistep", "cosine")
SUPPRESSIONS = ("per_class", "across_classes")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# `evaluation.protocols` defines them.
EVALUATION_PROTOCOLS = (
    "paper",
    "released",
    "released_coco",
    "multi_scale_voc_320",
    "multi_scale_voc_512",
    "multi_scale_coco_320",
    "multi_scale_coco_512",
)
DATA_FORMATS = ("voc", "coco", "tfrecord", "tfds")


@dataclass
class BackboneConfig:
    """The network that produces the four feature maps.

    Attributes:
        name: one of `BACKBONES`.
        alpha: width multiplier of the MobileNets.
        preset_or_class: for `keras_cv`: a class of keras_cv.models such as ResNetV2Backbone, or a preset such as
            resnet50_v2_imagenet or a folder that `save_to_preset` wrote.
        arguments: for a class of keras_cv.models: arguments of its constructor.
        preprocessing: one of `PREPROCESSING_MODES`, the form of input that the weights expect, where it differs from
            the backbone's own.
        frozen_stages: the first stages that are not trained. All layers at one resolution are a stage.
        freeze_batch_norm: the backbone's batch normalisation keeps its statistics, scales and shifts.
    """

    name: str = "vgg16"
    alpha: float = 1.0
    preset_or_class: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    preprocessing: str | None = None
    frozen_stages: int = 0
    freeze_batch_norm: bool = False


@dataclass
class DetectionConfig:
    """From scores and boxes to detections. Defaults: the released VOC protocol; the paper's text has 400 and 200.

    Attributes:
        score_threshold: a class score must lie above it.
        iou_threshold: a box is suppressed by a better one that overlaps it more than this.
        pre_suppression_top_k: best anchors of each class that enter suppression; 0 takes all.
        max_detections: detections of one image, over all classes, that leave it.
        suppression: `per_class`, the paper's: boxes compete with boxes of their own class only. `across_classes`: every
            anchor keeps its best class alone, and all boxes compete, so that one object has one label.
    """

    score_threshold: float = 0.01
    iou_threshold: float = 0.45
    pre_suppression_top_k: int = 1000
    max_detections: int = 500
    suppression: str = "per_class"


@dataclass
class ModelConfig:
    """Everything that defines a `RefineDet`; it travels inside the saved model.

    Attributes:
        classes: names of the object classes, in the order of their indices; background is not among them.
        input_size: height and width in pixels, multiples of 64.
        resize: how images get to that size: `warp`, the paper's way, whatever their aspect ratio, or `letterbox`, in
            their aspect ratio with the mean colour around them. Boxes always belong to the image as it was.
        backbone: the network below.
        width: channels of the transfer connection blocks, P3 to P6.
        separable: 3x3 convolutions of transfer connection blocks and heads are depthwise-separable.
        batch_norm: batch normalisation in the transfer connection blocks (and inside separable convolutions).
        head_blocks: a residual block of 1024 channels before the heads of every level and module, as in the released
            ResNet-101 models.
        upsampling: how a transfer connection block doubles the map above: by `deconvolution`, the paper's, or by
            `resize`, nearest neighbours, which has no parameters and quantises well.
        two_step_regression: the ARM moves the anchors before the ODM does. Without, as in the paper's ablation, it only
            tells objects from background, its offsets are zero, and the ODM starts from the plain anchors.
        transfer_connection: the ODM sees transfer connection blocks. Without, as in the paper's ablation, its heads sit
            on the backbone's maps.
        anchor_sizes: side in pixels of the square anchor at strides 8, 16, 32, 64. The paper: 4 x stride.
        arm_positive_iou: IoU from which an anchor is an object in the ARM's matching.
        arm_negative_iou: IoU below which an unmatched anchor may be mined as a negative of the ARM. Anchors between
            the two are ignored. (The authors advise 0.7 and 0.3 for reproducing the paper's best VOC figure.)
        objectness_threshold: anchors whose ARM objectness is lower are no candidates for the ODM's hard negatives and
            give no detections (background confidence above 0.99 in the paper). 0 switches the filter off.
        negative_ratio: hard negatives for each positive of an image.
        detection: suppression settings of `predict` and of exported models.
    """

    classes: list[str] = MISSING
    input_size: list[int] = field(default_factory=lambda: [320, 320])
    resize: str = "warp"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    width: int = 256
    separable: bool = False
    batch_norm: bool = False
    head_blocks: bool = False
    upsampling: str = "deconvolution"
    two_step_regression: bool = True
    transfer_connection: bool = True
    anchor_sizes: list[float] = field(default_factory=lambda: [32.0, 64.0, 128.0, 256.0])
    arm_positive_iou: float = 0.5
    arm_negative_iou: float = 0.5
    objectness_threshold: float = 0.01
    negative_ratio: float = 3.0
    detection: DetectionConfig = field(default_factory=DetectionConfig)


@dataclass
class KerasCvLayerConfig:
    """A preprocessing layer of KerasCV.

    Attributes:
        name: a class of keras_cv.layers, such as Mosaic, MixUp, RandAugment or JitteredResize.
        arguments: of its constructor; box format, value range, target size and seed are filled in.
    """

    name: str = MISSING
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class AugmentationConfig:
    """The steps of the paper's training augmentation, each of which can be left out, and further ones.

    Attributes:
        photometric: random brightness, contrast, saturation and hue.
        expand_max_ratio: with probability 1/2 the image is put on a canvas of up to so many times its sides; 1: never.
        random_crop: the IoU-constrained crop of SSD.
        flip: horizontal mirror with probability 1/2.
        random_interpolation: resize with one of several methods at random instead of bilinear.
        keras_cv: layers of KerasCV, applied to each batch after these steps.
    """

    photometric: bool = True
    expand_max_ratio: float = 4.0
    random_crop: bool = True
    flip: bool = True
    random_interpolation: bool = True
    keras_cv: list[KerasCvLayerConfig] = field(default_factory=list)


@dataclass
class DataConfig:
    """What is read from `--data_dir`.

    Attributes:
        format: one of `DATA_FORMATS`. `voc`: a folder with Annotations, ImageSets/Main and JPEGImages, or VOCdevkit
            with several of them; `coco`: annotations/instances_SPLIT.json and the images in SPLIT/; `tfrecord`: files
            such as SPLIT.tfrecord-00000-of-00008 with the feature names of the TensorFlow Object Detection API;
            `tfds`: the data folder of tensorflow_datasets.
        train_splits: what to train on. `voc`: names of lists in ImageSets/Main, below VOCdevkit VOC2007/trainval and
            the like; `coco`: train2017 and the like; `tfds`: voc/2007/train and the like.
        val_splits: what to evaluate on.
        max_boxes: objects of one image that a training batch holds; further ones are dropped and counted.
        cache: read all training images at once and keep the files in memory, for disks that are slow.
        augmentation: what is done to training images.
    """

    format: str = "voc"
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    val_splits: list[str] = field(default_factory=lambda: ["val"])
    max_boxes: int = 100
    cache: bool = False
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass
class TrainConfig:
    """How the model is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images of one step, over all GPUs.
        optimizer: one of `OPTIMIZERS`. `sgd` is the paper's: momentum, twice the rate and no decay for biases.
        learning_rate: the rate after the warm-up.
        schedule: `multistep` multiplies the rate by `decay_rate` after each of `decay_epochs`; `cosine` lets it fall
            to zero at the last step.
        decay_epochs: the boundaries of `multistep`.
        decay_rate: the factor of `multistep`.
        warmup_steps: steps over which the rate first rises linearly.
        momentum: of `sgd`.
        weight_decay: `sgd`: coefficient of the L2 term added to the gradient; `adam`: decoupled (AdamW).
        clip_norm: gradients of a larger global norm are scaled down to it; 0: never.
        precision: Keras's precision policy, one of `PRECISIONS`.
        jit_compile: compile the training step with XLA.
        seed: seeds initial weights, order and augmentation.
        weights: initial weights: a file, `imagenet` (keras.applications, a download), `efficientnet_lite0` (1, 2: the
            package of the extra lite0), or nothing.
        evaluate_every: epochs between evaluations on the validation splits; the last epoch is always evaluated.
    """

    epochs: int = 1
    batch_size: int = 32
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    schedule: str = "multistep"
    decay_epochs: list[int] = field(default_factory=list)
    decay_rate: float = 0.1
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    precision: str = "float32"
    jit_compile: bool = False
    seed: int = 0
    weights: str | None = None
    evaluate_every: int = 10


@dataclass
class EvaluationConfig:
    """How the model is evaluated on the validation splits.

    Attributes:
        protocol: one of `EVALUATION_PROTOCOLS`; None takes `model.detection` at the model's input size.
    """

    protocol: str | None = None


@dataclass
class Config:
    """A whole recipe."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
