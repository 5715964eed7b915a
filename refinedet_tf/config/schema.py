"""The sections of a recipe and the meaning of each setting."""

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
    "keras_hub": "kerashub",
}
PREPROCESSING_MODES = ("caffe", "tf", "torch", "lite", "none")
RESIZE_MODES = ("warp", "letterbox")
UPSAMPLING = ("deconvolution", "resize")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("multistep", "cosine")
SUPPRESSIONS = ("per_class", "across_classes")
ODM_LOSSES = ("cross_entropy", "focal")
NORMALIZE_POSITIVES = ("per_replica", "global")
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
BEST_METRICS = ("ap_11_point", "ap_area", "coco_ap")
DATA_FORMATS = ("voc", "coco", "yolo", "tfrecord", "tfds")
OTHER_CLASSES = ("error", "ignore", "background")


@dataclass
class BackboneConfig:
    """The network that produces the four feature maps.

    Attributes:
        name: one of `BACKBONES`.
        alpha: width multiplier of the MobileNets.
        preset_or_class: for `keras_cv` and `keras_hub`: a class of keras_cv.models or keras_hub.models such as
            ResNetV2Backbone, a preset such as resnet50_v2_imagenet, or a folder written by `save_to_preset`.
        arguments: for such a class: the arguments of its constructor.
        preprocessing: one of `PREPROCESSING_MODES`, the input that the weights expect, if it differs from the
            backbone's own.
        frozen_stages: number of first stages that are not trained. A stage is all layers at one resolution.
        freeze_batch_norm: whether the backbone's batch normalization keeps its statistics, scales and shifts.
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
    """How scores and boxes become detections. Defaults: the released VOC protocol; the paper's text has 400 and 200.

    Attributes:
        score_threshold: detections need a class score above it.
        iou_threshold: a box is suppressed by a better one whose IoU with it exceeds this.
        pre_suppression_top_k: number of best anchors of each class that enter suppression; 0 takes all.
        max_detections: number of detections to keep for an image, over all classes.
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
        resize: how images are resized: `warp`, as in the paper, ignores their aspect ratio; `letterbox` keeps it and
            pads with the mean color. Boxes always refer to the original image.
        backbone: the network that produces the feature maps.
        width: channels of the transfer connection blocks, P3 to P6.
        separable: whether the 3x3 convolutions of transfer connection blocks and heads are depthwise-separable.
        batch_norm: whether transfer connection blocks and separable convolutions have batch normalization.
        head_blocks: whether a residual block of 1024 channels precedes the heads of each level and module, as in the
            released ResNet-101 models.
        upsampling: how a transfer connection block doubles the map above: `deconvolution`, as in the paper, or
            `resize`, nearest neighbor, which has no parameters and quantizes well.
        two_step_regression: whether the ARM refines the anchors before the ODM does. Without it, as in the paper's
            ablation, the ARM predicts objectness only, its offsets are zero, and the ODM starts from the plain anchors.
        transfer_connection: whether the ODM uses transfer connection blocks. Without them, as in the paper's ablation,
            its heads use the backbone's maps.
        anchor_sizes: side in pixels of the square anchor at strides 8, 16, 32, 64; in the paper 4 x stride.
        arm_positive_iou: the lowest IoU at which the ARM's matching makes an anchor positive.
        arm_negative_iou: the ARM mines its hard negatives among unmatched anchors with a lower IoU. Anchors between
            the two thresholds are ignored. (The authors advise 0.7 and 0.3 to reproduce the paper's best VOC figure.)
        objectness_threshold: anchors with a lower ARM objectness are neither hard negatives of the ODM nor detections
            (in the paper: background confidence above 0.99). 0 disables the filter.
        negative_ratio: number of hard negatives for each positive of an image.
        odm_loss: classification loss of the ODM: `cross_entropy` over positives and hard negatives, as in the paper, or
            `focal`, over all anchors that pass the objectness filter, without mining. See `RefineDetLoss`.
        focal_alpha: weight of objects in the focal loss; the background has `1 - focal_alpha`.
        focal_gamma: exponent of the focal loss; the higher, the less easy anchors count.
        detection: suppression settings of `predict` and of exported models.
        score_thresholds: by class name, the score from which detections should be shown; `predict` does not apply it,
            it is information for users of the model. `refinedet evaluate --save_thresholds` writes it.
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
    odm_loss: str = "cross_entropy"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    score_thresholds: dict[str, float] = field(default_factory=dict)


@dataclass
class KerasCvLayerConfig:
    """A preprocessing layer of KerasCV.

    Attributes:
        name: a class of keras_cv.layers, such as Mosaic, MixUp, RandAugment or JitteredResize.
        arguments: the arguments of its constructor; box format, value range, target size and seed are filled in.
    """

    name: str = MISSING
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class AugmentationConfig:
    """The paper's training augmentation, step by step, and further layers.

    Attributes:
        photometric: random brightness, contrast, saturation and hue.
        expand_max_ratio: with probability 1/2 the image is placed on a canvas of up to this many times its sides; 1
            disables it.
        random_crop: SSD's IoU-constrained crop.
        flip: horizontal flip with probability 1/2.
        random_interpolation: resize with a randomly chosen method instead of bilinear.
        keras_cv: layers of KerasCV, applied to each batch after these steps.
    """

    photometric: bool = True
    expand_max_ratio: float = 4.0
    random_crop: bool = True
    flip: bool = True
    random_interpolation: bool = True
    keras_cv: list[KerasCvLayerConfig] = field(default_factory=list)


@dataclass
class SplitConfig:
    """How to divide a data set without lists of its splits at random, class by class.

    Attributes:
        val: the part of the images to evaluate on, below 1; 0: the data set has lists.
        seed: the random seed.
    """

    val: float = 0.0
    seed: int = 0


@dataclass
class DataConfig:
    """The data set in `--data_dir` and how it is read.

    Attributes:
        format: one of `DATA_FORMATS`. `voc`: a folder with Annotations, ImageSets/Main and JPEGImages, or VOCdevkit
            with several of them; `coco`: annotations/instances_SPLIT.json and the images in SPLIT/; `yolo`: data.yaml
            or classes.txt, images/ and labels/, as Ultralytics, Roboflow and Label Studio write them; `tfrecord`: files
            such as SPLIT.tfrecord-00000-of-00008 with the feature names of the TensorFlow Object Detection API;
            `tfds`: the data folder of tensorflow_datasets.
        train_splits: the splits to train on. `voc`: names of lists in ImageSets/Main, or, in VOCdevkit, names such as
            VOC2007/trainval; `coco`: names such as train2017; `tfds`: names such as voc/2007/train.
        val_splits: the splits to evaluate on; empty: train without evaluation.
        max_boxes: number of objects of an image that a training batch can hold; further ones are dropped and counted.
        cache: whether to keep all training files in memory, for slow disks.
        augmentation: the augmentation of training images.
        annotations: for `coco`: the JSON file, relative to the data folder; `SPLIT` in it stands for the split.
        images: for `coco`: the folder of the images, likewise; by default that of the JSON file if `annotations` is
            given.
        split: how to divide a data set (`voc`, `coco`, `yolo`) into the splits train and val.
        rename: new class names by the names in the data: {van: car, truck: car}. Comes before everything else.
        other_classes: one of `OTHER_CLASSES`, what happens to objects whose class is not in `model.classes`: `error`
            stops; with `ignore` they take no part, and anchors on them are left out of the losses; `background` takes
            them for background.
    """

    format: str = "voc"
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    val_splits: list[str] = field(default_factory=lambda: ["val"])
    max_boxes: int = 100
    cache: bool = False
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    annotations: str | None = None
    images: str | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
    rename: dict[str, str] = field(default_factory=dict)
    other_classes: str = "error"


@dataclass
class TrainConfig:
    """How the model is trained.

    Attributes:
        epochs: number of passes over the training images.
        batch_size: number of images of a step, over all GPUs.
        optimizer: one of `OPTIMIZERS`, or a mapping of `name` and `arguments` for any class of `keras.optimizers`, or,
            with the prefix `tfa:`, of `tensorflow_addons.optimizers`. `sgd` is the paper's: momentum, twice the rate
            and no decay for biases.
        learning_rate: the rate after the warm-up.
        schedule: `multistep` multiplies the rate by `decay_rate` after each of `decay_epochs`; `cosine` reduces it to
            zero at the last step.
        decay_epochs: the epochs at which `multistep` reduces the rate.
        decay_rate: the factor of `multistep`.
        warmup_steps: number of steps over which the rate rises linearly at the start.
        momentum: the momentum of `sgd`.
        weight_decay: `sgd`: coefficient of the L2 term added to the gradient; `adam`: decoupled (AdamW).
        clip_norm: gradients of a larger global norm are scaled down to it; 0 disables clipping.
        ema_momentum: the momentum of an exponential moving average of the weights, such as 0.999, with which the model
            is evaluated and saved; 0 disables it.
        accumulation_steps: number of steps whose gradients are averaged for one update of the weights, for large
            batches on small devices; Keras 3 only.
        precision: Keras's precision policy, one of `PRECISIONS`.
        jit_compile: whether to compile the training step with XLA; `auto` does so on GPUs.
        normalize_positives: with several GPUs, losses are divided by the positives of each GPU's share of the batch,
            `per_replica`, as in the original, or by those of the whole batch, `global`, as on one GPU.
        synchronize_batch_norm: whether batch normalization takes its statistics over the images of all GPUs, as on one
            GPU, instead of those of each GPU's own share.
        seed: random seed of initial weights, order and augmentation.
        weights: initial weights: a file, the name of a pretrained model, `imagenet` (keras.applications, a download),
            `efficientnet_lite0` (1, 2: the package of the extra lite0), or nothing.
        class_map: for initial weights with other class names: `coco_to_voc`, or a file that `load_weights` takes.
        evaluate_every: number of epochs between evaluations; the last epoch is always evaluated.
        best_metric: the average precision that chooses `best.keras`, one of `BEST_METRICS`.
        checkpoint_steps: steps between checkpoints within an epoch; 0: only at the end of each epoch.
        keep_checkpoints: the newest checkpoints that are kept.
    """

    epochs: int = 1
    batch_size: int = 32
    optimizer: Any = "sgd"
    learning_rate: float = 1e-3
    schedule: str = "multistep"
    decay_epochs: list[int] = field(default_factory=list)
    decay_rate: float = 0.1
    warmup_steps: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    ema_momentum: float = 0.0
    accumulation_steps: int = 1
    precision: str = "float32"
    jit_compile: Any = "auto"
    normalize_positives: str = "per_replica"
    synchronize_batch_norm: bool = False
    seed: int = 0
    weights: str | None = None
    class_map: str | None = None
    evaluate_every: int = 10
    best_metric: str = "ap_11_point"
    checkpoint_steps: int = 0
    keep_checkpoints: int = 2


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
