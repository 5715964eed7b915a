import base64
import importlib
import json
import os
import zipfile
import zlib

import h5py
import numpy as np
import pytest
from tensorflow import keras

from refinedet_tf.config import BackboneConfig, ModelConfig
from refinedet_tf.errors import WeightFileError
from refinedet_tf.model import RefineDet
from refinedet_tf.stacks import KERAS_MAJOR
from refinedet_tf.weights import load_model, load_weights
from refinedet_tf.weights.assignment import assign, by_name, is_detector_layer, named_variables
from refinedet_tf.weights.class_maps import fit_classes
from tests.backbones.test_kerascv import NETWORKS
from tests.conftest import PROJECT

IMAGENET = PROJECT.parent / "shared" / "weights"
CLASS_VARIABLES = [f"odm{k}_classes_pointwise/{kind}" for k in (3, 4, 5, 6) for kind in ("kernel", "bias")]
FORMS = ("model.keras", "model.weights.h5", "model.h5", "model.npz")
if KERAS_MAJOR == 2:  # which writes no names into .weights.h5
    FORMS = ("model.keras", "model.h5", "model.npz")


def values(model):
    return {name: variable.numpy().copy() for name, variable in named_variables(model).items()}


def assert_unchanged(model, before):
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.fixture(scope="module")
def shared_model(tiny_config):
    return RefineDet(tiny_config)


@pytest.fixture
def other_model(shared_model):
    """A second model of the same recipe, with weights of its own."""
    for index, variable in enumerate(shared_model.variables):
        variable.assign(np.full(variable.shape, index, np.float32))
    return shared_model


@pytest.fixture(scope="module")
def wide_model(tiny_config):
    return RefineDet(ModelConfig(**{**vars(tiny_config), "width": 24}))


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """The tiny model in every form that Keras saves."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("model.keras", "model.h5"):
        tiny_model.save(folder / name)
    tiny_model.save_weights(folder / "model.weights.h5")
    np.savez(folder / "model.npz", **values(tiny_model))
    return folder


@pytest.fixture(scope="module")
def renamed_model(tiny_config):
    """Of the classes circle, square, star it knows two, and two others."""
    return RefineDet(ModelConfig(**{**vars(tiny_config), "classes": ["star", "moon", "circle", "sun"]}))


def number_of_variables(model):
    """Without those of its metrics, which Keras 2 counts among them."""
    return sum(len(layer.weights) for layer in model.layers)


def test_every_variable_has_a_name_of_its_own(tiny_model):
    assert len(named_variables(tiny_model)) == number_of_variables(tiny_model)


def test_variables_of_layers_made_of_layers_are_told_apart():
    name = "EfficientNetV2Backbone"
    backbone = BackboneConfig("keras_cv", preset_or_class=name, arguments=NETWORKS[name])
    model = RefineDet(ModelConfig(classes=["a"], input_size=[64, 64], backbone=backbone, width=8))
    assert len(named_variables(model)) == number_of_variables(model)
    assert any(":" in name for name in named_variables(model))


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_model_hands_on_all_its_weights(form, saved, tiny_model, other_model):
    assert load_weights(other_model, saved / form).transform_counts() == {"copied": number_of_variables(tiny_model)}
    assert_unchanged(other_model, values(tiny_model))


@pytest.mark.parametrize("form", FORMS)
def test_class_heads_of_other_classes_are_left_out_or_mapped_by_name(form, saved, tiny_model, renamed_model):
    source = values(tiny_model)
    for variable in renamed_model.variables:
        variable.assign(np.full(variable.shape, 7, np.float32))
    report = load_weights(renamed_model, saved / form)
    loaded = values(renamed_model)
    if form == "model.keras":
        assert not report.kept
        assert report.classes == [
            "background <- 0",
            "star <- 3 (star)",
            "moon: not in the file, unchanged",
            "circle <- 1 (circle)",
            "sun: not in the file, unchanged",
        ]
        for name in CLASS_VARIABLES:
            for anchor in range(3):
                rows = loaded[name][..., 5 * anchor : 5 * anchor + 5]
                old = source[name][..., 4 * anchor : 4 * anchor + 4]
                np.testing.assert_array_equal(rows[..., [0, 1, 3]], old[..., [0, 3, 1]])
                assert (rows[..., [2, 4]] == 7).all()
    else:
        assert report.kept == CLASS_VARIABLES
        assert "the file has 3 classes, the model 4" in report.classes[0]
        assert all((loaded[name] == 7).all() for name in CLASS_VARIABLES)
    assert sorted(report.loaded + report.kept) == sorted(loaded)
    for name in set(report.loaded) - set(CLASS_VARIABLES):
        np.testing.assert_array_equal(loaded[name], source[name])


def test_a_class_map_file_says_what_becomes_what(saved, tiny_model, renamed_model, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"moon": 2, "star": 2, "planet": 1}))
    for form in ("model.npz", "model.keras"):
        report = load_weights(renamed_model, saved / form, tmp_path / "map.json")
        assert [line.split(" (")[0] for line in report.classes] == [
            "background <- 0", "star <- 2", "moon <- 2", "circle: not in the file, unchanged",
            "sun: not in the file, unchanged",
        ]  # fmt: skip
        bias, source = values(renamed_model)[CLASS_VARIABLES[1]], values(tiny_model)[CLASS_VARIABLES[1]]
        for anchor in range(3):
            np.testing.assert_array_equal(bias[5 * anchor + 1 : 5 * anchor + 3], source[[4 * anchor + 2] * 2])


@pytest.mark.parametrize(
    "class_map, message",
    [
        ({"star": 4}, "has 3 classes; the class map asks for star: 4"),
        ({"planet": 1}, "names none of the model's classes star, moon"),
        ({"star": 0}, "'star': 0 is not a class name and an index from 1"),
        ({"star": True}, "'star': True"),
        ({"star": "circle"}, "'star': 'circle'"),
        ({}, "must map class names to indices"),
        ("nowhere.yaml", "no class map '.*nowhere.yaml'; shipped with the library: coco_to_voc"),
        ("list.yaml", "must map class names"),
        ("broken.yaml", "not a readable class map"),
        ("bomb.yaml", "not a readable class map: aliases are not supported"),
        ("deep.yaml", "not a readable class map: it nests too deeply"),
        ("date.yaml", "not a readable class map: month must be in"),
    ],
)
def test_unusable_class_maps_are_refused(class_map, message, saved, renamed_model, tmp_path):
    (tmp_path / "list.yaml").write_text("[star, moon]")
    (tmp_path / "broken.yaml").write_text("{star: [")
    (tmp_path / "bomb.yaml").write_text("star: &a [x, x]\nmoon: [*a, *a]")
    (tmp_path / "deep.yaml").write_text("star: " + "[" * 3000)
    (tmp_path / "date.yaml").write_text("star: 2001-99-99")
    before = values(renamed_model)
    if isinstance(class_map, str):
        class_map = tmp_path / class_map
    with pytest.raises(WeightFileError, match=message):
        load_weights(renamed_model, saved / "model.npz", class_map)
    assert_unchanged(renamed_model, before)


@pytest.fixture(params=["0.25", "0.75", "random"])
def archive(request, tmp_path):
    """Weights of a MobileNet by Keras's names, and its width."""
    if request.param != "random":
        path = IMAGENET / f"mobilenet_v1_{request.param}_224_imagenet.npz"
        if not path.exists():
            pytest.skip("the ImageNet weights are not on this machine")
        return path, float(request.param)
    network = keras.applications.MobileNet(weights=None, alpha=0.25)
    random = np.random.default_rng(9)
    arrays = {name: random.normal(size=variable.shape) for name, variable in named_variables(network).items()}
    for name in [name for name in arrays if name.startswith("conv_dw") and name.endswith("/kernel")]:
        arrays[name.replace("/kernel", "/depthwise_kernel")] = arrays.pop(name)  # Keras 2's name
    np.savez(tmp_path / "mobilenet.npz", **arrays)
    return tmp_path / "mobilenet.npz", 0.25


def test_imagenet_weights_fill_the_backbone_and_nothing_else(archive, tiny_config, other_model):
    path, alpha = archive
    model = other_model
    if alpha != 0.25:
        with pytest.raises(WeightFileError, match=r"conv1/kernel: \(3, 3, 3, 24\) in the file, \(3, 3, 3, 8\) in the"):
            load_weights(model, path)
        model = RefineDet(ModelConfig(**{**vars(tiny_config), "backbone": BackboneConfig("mobilenet_v1", alpha)}))
    before = values(model)
    report = load_weights(model, path)
    after, arrays = values(model), np.load(path)
    assert len(report.loaded) == 27 * 5  # convolutions with four batch normalization variables each
    for name in report.loaded:
        there = name.replace("/kernel", "/depthwise_kernel") if name.startswith("conv_dw") else name
        np.testing.assert_array_equal(after[name], arrays[there].astype(np.float32), err_msg=name)
    assert report.unused == ["conv_preds"] and len(report.used) == 27 * 2
    assert all(map(is_detector_layer, report.kept))
    for name in report.kept:
        np.testing.assert_array_equal(after[name], before[name])
    assert f"{len(report.loaded)} of {len(before)}" in report.summary()
    with pytest.raises(WeightFileError, match="has no class heads"):
        load_weights(model, path, "coco_to_voc")


def test_weights_for_another_input_form_are_refused(saved, tiny_config, tmp_path):
    backbone = BackboneConfig("mobilenet_v1", 0.25, preprocessing="torch")
    model = RefineDet(ModelConfig(**{**vars(tiny_config), "backbone": backbone}))
    before = values(model)
    trunk = {name: value for name, value in before.items() if not is_detector_layer(name)}
    np.savez(tmp_path / "trunk.npz", **trunk)
    for path in (saved / "model.keras", tmp_path / "trunk.npz"):
        with pytest.raises(WeightFileError, match=r"input form tf, the model's is torch; set model\.backbone\.prep"):
            load_weights(model, path)
    assert_unchanged(model, before)


def test_everything_that_does_not_fit_is_listed_and_nothing_is_changed(other_model):
    before = values(other_model)
    arrays = {name: value + 1 for name, value in before.items() if not name.startswith("TL4_2")}
    arrays["conv_pw_2/kernel"] = np.zeros((1, 1, 5, 7), np.float32)
    arrays["conv_pw_3/kernel"] = np.full(before["conv_pw_3/kernel"].shape, "text")
    arrays["surplus/kernel"] = np.zeros(3)
    with pytest.raises(WeightFileError) as error:
        assign(other_model, by_name("a test", arrays), "file.npz")
    lines = str(error.value).splitlines()
    assert lines[1].startswith("  missing in the file: TL4_2_depthwise, TL4_2_depthwise_bn, TL4_2_pointwise")
    assert "conv_pw_2/kernel: (1, 1, 5, 7) in the file, (1, 1, 16, 32) in the model" in lines[3]
    assert "conv_pw_3/kernel: (1, 1, 32, 32) of type <U4 in the file" in lines[4]
    assert lines[5] == "  in the file, but not in the model: surplus"
    assert_unchanged(other_model, before)


def test_class_heads_for_the_background_alone_do_not_fit(tiny_model, renamed_model):
    """They are not taken for those of other classes, which would be left out."""
    arrays = {name: value[..., :3] if name in CLASS_VARIABLES else value for name, value in values(tiny_model).items()}
    fitted = fit_classes(renamed_model, by_name("a test", arrays), None, "file.npz")
    assert fitted.left_out == fitted.lines == []
    with pytest.raises(WeightFileError, match=r"odm3_classes_pointwise/bias: \(3,\) in the file, \(15,\) in the model"):
        assign(renamed_model, fitted.weights, "file.npz")


def test_a_file_of_another_network_is_refused(other_model):
    with pytest.raises(WeightFileError, match="no variable of this model"):
        assign(other_model, by_name("a test", {"layer4.0.conv1/weight": np.zeros(3)}), "test")


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_another_width_is_refused(form, saved, wide_model):
    before = values(wide_model)
    with pytest.raises(WeightFileError, match="does not fit"):
        load_weights(wide_model, saved / form)
    assert_unchanged(wide_model, before)


def test_hostile_and_broken_files_are_refused(other_model, saved, tmp_path):
    np.savez(tmp_path / "pickled.npz", **{"conv1/kernel": np.array([{"a": 1}], dtype=object)})
    with zipfile.ZipFile(tmp_path / "fake.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:  # a header that claims 4 TB
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n"
        archive.writestr("conv1/kernel.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.h5").write_bytes(b"")
    with h5py.File(tmp_path / "huge.weights.h5", "w") as file:  # takes no room until it is read
        values_of_layer = file.create_group("layers/conv2d/vars")
        values_of_layer.attrs["name"] = "odm3_offsets"
        values_of_layer.create_dataset("0", shape=(10**12,), dtype="f4", chunks=(1024,))
    with h5py.File(tmp_path / "numbers.h5", "w") as file, h5py.File(tmp_path / "link.weights.h5", "w") as link:
        file["numbers"] = np.zeros(3)
        values_of_layer = link.create_group("layers/conv2d/vars")
        values_of_layer.attrs["name"] = "odm3_offsets"
        values_of_layer["0"] = h5py.ExternalLink(tmp_path / "numbers.h5", "numbers")
    for form in FORMS:
        whole = (saved / form).read_bytes()
        (tmp_path / f"half.{form}").write_bytes(whole[: len(whole) // 2])
    before = values(other_model)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 8 + len(FORMS)
    for name in [*names, "missing.npz"]:
        with pytest.raises(WeightFileError, match=name):
            load_weights(other_model, tmp_path / name)
    assert_unchanged(other_model, before)


# An HDF5 file of Keras's with two broken bits, by which libhdf5 1.14 reads beyond its memory: zlib, base 85.
CRASHING = (
    "c-rlm%T59@6o%UwW|$C&V`9R^1X+67NZh#82+G2UQ5WnGbr2$#1c=6!TYLi_fu)b((ns(ScmteE544S3LsY`~HYe>l)6Pu)w$n4OnbdJ85DO3o"
    "!yrCl5}qETv?G?mf6Xjqw#{rufqK>TMOeMb+E1ur{MAJ|?L_w^pr4Ws*CWeFCVhDB*c>Y-nEg=1xZ8T|F_}-2`dxJ|UoRG$R;$VDbDs~k#`n9*"
    "6esICNJ>oKL9%A6yHa?z8u?nGYPsE!D5dU|X1{O4i>F=*ZX2wB5aQMaxiTFwkDy}GdGr<~+}$9{K9Bl((#5z3t5LHmgxr)1!u&ayvER$HY>L{-"
    "2Hka3ao_l4<*p{K^Y4B!uDj0s@#P%9Ve3FUF0KQUa&nYCrQ8dL_Z(zaUPp!Xid%2l@Y&xF9-td2>yoatA@TZ<cp$fea~MGo1VIo4K@bE%rUmkw"
    "a{gtI-we6=%_pmTUuq2!oYBs7`AvNg;-2|^Tv>J7(7bji<RKy>+f!}7<5^8?upB~ygbfmYVSdeS-0>@lLcOlM_EZX~V>tub{#WAy`7+3ZeZ@w{"
    "!_%}QsA-<x)0MFhx*GR?z}))zDUju0*#CiDDc?Tt{{yfO$@%@U`w*RdAJV0LNW<Yr5ClOG1kXovJRg}0dG5|_Pj>Dmo2aF~(N$z2boC8BG@kM"
)


def test_a_file_that_crashes_libhdf5_is_refused(other_model, tmp_path):
    (tmp_path / "crash.h5").write_bytes(zlib.decompress(base64.b85decode(CRASHING)))
    with pytest.raises(WeightFileError, match=r"crash\.h5"):
        load_weights(other_model, tmp_path / "crash.h5")


@pytest.mark.parametrize("form, count", [("model.keras", 2), ("model.h5", 8), ("model.npz", 60)])
def test_flipped_bits_give_weights_or_the_error(form, count, saved, other_model, tmp_path):
    content = np.frombuffer((saved / form).read_bytes(), np.uint8)
    random = np.random.default_rng(4)
    path = tmp_path / form
    # HDF5 has its tables at the start, zip at the end.
    for place in (range(2000), range(len(content) - 2000, len(content))):
        for _ in range(count):
            broken = content.copy()
            where = random.choice(place, random.integers(1, 4))
            broken[where] ^= random.integers(1, 256, len(where)).astype(np.uint8)
            path.write_bytes(broken.tobytes())
            try:
                load_weights(other_model, path)
            except WeightFileError as error:
                assert form in str(error)


def test_a_model_file_executes_nothing(other_model, saved, tmp_path, monkeypatch):
    """Keras imports any module that a .keras file names; Keras 2 runs the code that an .h5 file holds."""
    made = tmp_path / "made"
    (tmp_path / "hostile.py").write_text(f"import os; os.mkdir({os.fspath(made)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    with zipfile.ZipFile(tmp_path / "imports.keras", "w") as archive:
        config = {"module": "hostile", "class_name": "Model", "registered_name": None, "config": {}}
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"")

    where = os.fspath(made)
    mkdir = keras.layers.Lambda(lambda x, path=where: (__import__("os").mkdir(path), x)[1])
    keras.Sequential([keras.Input((3,)), mkdir]).save(tmp_path / "code.h5")
    made.rmdir()  # building it ran it
    # Both an HDF5 file and, from its end, a zip archive with an honest model.
    (tmp_path / "both.h5").write_bytes((tmp_path / "code.h5").read_bytes() + (saved / "model.keras").read_bytes())
    (tmp_path / "code.keras").write_bytes((tmp_path / "code.h5").read_bytes())

    for name in ("imports.keras", "code.h5", "both.h5", "code.keras"):
        for load in (load_model, lambda path: load_weights(other_model, path)):
            with pytest.raises(WeightFileError, match=name):
                load(tmp_path / name)
    assert not made.exists()
    importlib.import_module("hostile")
    assert made.exists()  # it would have been


def test_other_models_are_refused_by_name(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(WeightFileError, match=r"other\.keras holds a Sequential, not a RefineDet"):
        load_model(tmp_path / "other.keras")
