import contextlib
import dataclasses
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from refinedet_tf.config import (
    Config,
    DetectionConfig,
    ModelConfig,
    TrainConfig,
    as_dict,
    list_recipes,
    load_config,
    model_config,
    save_config,
    validate,
    validate_model,
)
from refinedet_tf.errors import ConfigError
from tests.changed_recipe import CHANGED

RECIPES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
MINIMAL = "model: {classes: [cat, dog]}\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def leaves(values, prefix=""):
    """`section.key` to value."""
    if not isinstance(values, dict) or prefix == "data.rename":  # its keys are class names
        return {prefix: values}
    return {
        name: leaf
        for key, value in values.items()
        for name, leaf in leaves(value, f"{prefix}.{key}" if prefix else key).items()
    }


def settings(config):
    return leaves(dataclasses.asdict(config))


def test_recipe_without_settings_has_the_defaults_of_the_paper(write):
    config = load_config(write(MINIMAL))
    assert config == Config(model=ModelConfig(classes=["cat", "dog"]))
    assert (config.model.input_size, config.model.anchor_sizes) == ([320, 320], [32, 64, 128, 256])
    assert (config.model.arm_positive_iou, config.model.objectness_threshold) == (0.5, 0.01)
    assert config.model.detection == DetectionConfig(0.01, 0.45, 1000, 500)
    assert (config.train.learning_rate, config.train.momentum, config.train.weight_decay) == (1e-3, 0.9, 5e-4)


def test_recipes_of_coco_keep_the_best_model_by_coco_ap():
    for name in list_recipes():
        config = load_config(name)
        assert config.train.best_metric == ("coco_ap" if config.data.format == "coco" else "ap_11_point"), name


def test_saved_recipe_is_read_back_as_it_was(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(CHANGED, path)
    assert load_config(path) == CHANGED


def test_the_changed_recipe_of_these_tests_changes_every_setting(write):
    defaults, changed = settings(load_config(write(MINIMAL))), settings(CHANGED)
    assert defaults.keys() == changed.keys()
    unchanged = [key for key in changed if changed[key] == defaults[key]]
    assert unchanged == ["model.classes", "model.backbone.preset_or_class"]


@pytest.mark.parametrize(("key", "value"), [item for item in settings(CHANGED).items() if item[1] is not None])
def test_every_setting_can_be_overridden_alone(write, key, value):
    path = write("model: {classes: [bird], backbone: {name: mobilenet_v1}}\n")
    if key == "model.arm_positive_iou":
        value = 0.6  # any threshold above the default of its partner
    if key in ("data.annotations", "data.images"):  # only COCO has them, the second beside the first
        data = "{format: coco}" if key == "data.annotations" else "{format: coco, annotations: SPLIT.json}"
        path = write(f"model: {{classes: [bird], backbone: {{name: mobilenet_v1}}}}\ndata: {data}\n")
    before = settings(load_config(path))
    after = settings(load_config(path, overrides=[f"{key}={value}"]))
    assert {**before, key: value} == after


def test_thresholds_by_class_name_are_read_back(write, tmp_path):
    config = load_config(write(MINIMAL), ["model.classes=[cat,dog]", "model.score_thresholds.dog=0.35"])
    assert config.model.score_thresholds == {"dog": 0.35}
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_backbones_of_keras_cv_keep_their_class_and_its_arguments(write, tmp_path):
    backbone = "{name: keras_cv, preset_or_class: ResNetBackbone, arguments: {stackwise_blocks: [2, 2]}}"
    config = load_config(write(f"model: {{classes: [a], backbone: {backbone}}}"))
    assert config.model.backbone.arguments == {"stackwise_blocks": [2, 2]}
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(write):
    path = write(MINIMAL + "train: {batch_size: 4, epochs: 9}\n")
    train = load_config(path, overrides=["train.batch_size=8", "train.seed=1", "train.seed=2"]).train
    assert (train.batch_size, train.seed, train.epochs) == (8, 2, 9)


def test_numbers_in_scientific_notation_are_numbers(write):
    # YAML 1.1 takes 1e-3, without a point, for a string.
    assert load_config(write(MINIMAL + "train: {learning_rate: 1e-3}\n")).train.learning_rate == 0.001
    assert load_config(write(MINIMAL), ["train.weight_decay=2e-4"]).train.weight_decay == 0.0002


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("modle: {classes: [a]}", "modle", "model"),
        (MINIMAL + "trian: {}", "trian", "train"),
        ("model: {classes: [a], input_sise: [64, 64]}", "model.input_sise", "input_size"),
        ("model: {classes: [a], backbone: {alhpa: 0.5}}", "model.backbone.alhpa", "alpha"),
        (
            "model: {classes: [a], detection: {iou_treshold: 1}}",
            "model.detection.iou_treshold",
            "iou_threshold",
        ),
        (MINIMAL + "data: {max_box: 3}", "data.max_box", "max_boxes"),
        (MINIMAL + "data: {augmentation: {flp: true}}", "data.augmentation.flp", "flip"),
        (MINIMAL + "train: {batchsize: 3}", "train.batchsize", "batch_size"),
    ],
)
def test_unknown_key_is_named_with_the_nearest_known_one(write, text, key, nearest):
    with pytest.raises(ConfigError) as error:
        load_config(write(text))
    assert f"recipe.yaml: unknown key {key!r} (did you mean {nearest!r}?)" in str(error.value)


def test_unknown_key_in_an_override_is_named_as_in_a_file(write):
    with pytest.raises(ConfigError, match=r"unknown key 'train.batchsize' \(did you mean 'batch_size'\?\)"):
        load_config(write(MINIMAL), ["train.batchsize=8"])


def test_key_that_resembles_nothing_comes_with_the_known_ones(write):
    with pytest.raises(ConfigError, match="unknown key 'xyz'; known here: model, data, train"):
        load_config(write("xyz: 1"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=many", ["train.batch_size", "many", "Integer"]),
        ("train.batch_size=1.5", ["train.batch_size", "1.5"]),
        ("train.batch_size=null", ["train.batch_size", "None"]),
        ("train.batch_size", ["train.batch_size"]),
        ("train.jit_compile=maybe", ["train.jit_compile", "maybe", "auto, true or false"]),
        ("train.decay_epochs=3", ["train.decay_epochs", "list"]),
        ("train.decay_epochs=[1,x]", ["train.decay_epochs[1]", "x"]),
        ("model.classes=cat", ["model.classes", "list"]),
        ("model.classes=[]", ["model.classes", "at least one"]),
        ("model.classes=[cat,dog,cat]", ["model.classes", "repeats cat"]),
        ("model.classes=[cat,[dog]]", ["model.classes", "must be names"]),
        ("model.classes.0=bird", ["a list cannot be given as single keys"]),
        ("model.backbone=vgg16", ["BackboneConfig", "vgg16"]),
        ("model=3", ["ModelConfig", "3"]),
        ("train.batch_size=[1", ["unreadable override"]),
    ],
)
def test_values_of_the_wrong_kind_are_named(write, override, words):
    with pytest.raises(ConfigError) as error:
        load_config(write(MINIMAL), [override])
    assert "recipe.yaml" in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "requirement"),
    [
        ("model.input_size", [320], "must be [height, width], both multiples of 64"),
        ("model.input_size", [320, 300], "multiples of 64"),
        ("model.input_size", [320, 352], "multiples of 64"),
        ("model.input_size", [0, 64], "multiples of 64"),
        ("model.input_size", [64, -64], "multiples of 64"),
        ("model.input_size", [64, 8256], "at most 8192 pixels"),
        ("model.backbone.name", "vgg61", "did you mean 'vgg16'?"),
        ("model.backbone.alpha", -1.0, "must be positive"),
        ("model.backbone.preprocessing", "cafe", "did you mean 'caffe'?"),
        ("model.backbone.frozen_stages", -1, "must not be negative"),
        ("model.resize", "leterbox", "did you mean 'letterbox'?"),
        ("model.upsampling", "resized", "did you mean 'resize'?"),
        ("model.width", 0, "must be positive"),
        ("model.anchor_sizes", [32.0, 64.0, 128.0], "four positive sizes"),
        ("model.anchor_sizes", [32.0, 64.0, 128.0, 0.0], "four positive sizes"),
        ("model.arm_negative_iou", 0.6, "arm_negative_iou <= arm_positive_iou"),
        ("model.arm_negative_iou", -0.1, "0 <= arm_negative_iou"),
        ("model.objectness_threshold", 1.0, "must be in [0, 1)"),
        ("model.objectness_threshold", -0.01, "must be in [0, 1)"),
        ("model.negative_ratio", -1.0, "must not be negative"),
        ("model.detection.score_threshold", 1.01, "must be in [0, 1]"),
        ("model.detection.iou_threshold", -0.1, "must be in [0, 1]"),
        ("model.detection.pre_suppression_top_k", -1, "0 takes all"),
        ("model.detection.max_detections", 0, "must be positive"),
        ("model.detection.suppression", "across_class", "did you mean 'across_classes'?"),
        ("data.train_splits", [], "at least one split"),
        ("data.max_boxes", 0, "must be positive"),
        ("data.other_classes", "ignroe", "did you mean 'ignore'?"),
        ("data.annotations", "a.json", "only data.format coco has it"),
        ("data.split.val", 1.0, "must be in [0, 1)"),
        ("data.split.seed", -1, "must not be negative"),
        ("data.augmentation.expand_max_ratio", 0.9, "must be at least 1"),
        ("train.epochs", 0, "must be positive"),
        ("train.batch_size", -1, "must be positive"),
        ("train.learning_rate", 0.0, "must be positive"),
        ("train.learning_rate", ".nan", "must be positive"),
        ("train.evaluate_every", 0, "must be positive"),
        ("model.score_thresholds.cat", 1.5, "must be in [0, 1]"),
        ("model.score_thresholds", {"cst": 0.5}, "did you mean 'cat'"),
        ("evaluation.protocol", "relased", "did you mean 'released'"),
        ("train.warmup_steps", -1, "must not be negative"),
        ("train.weight_decay", -0.1, "must not be negative"),
        ("train.clip_norm", -1.0, "must not be negative"),
        ("train.decay_epochs", [4, 2], "must be positive and increasing"),
        ("train.decay_epochs", [0], "must be positive and increasing"),
        ("train.decay_rate", 0.0, "must be positive"),
        ("train.momentum", 1.0, "must be in [0, 1)"),
        ("train.momentum", -0.1, "must be in [0, 1)"),
        ("train.optimizer", "adma", "did you mean 'adam'?"),
        ("train.schedule", "cosin", "did you mean 'cosine'?"),
        ("train.precision", "mixed_bfloat61", "did you mean 'mixed_bfloat16'?"),
    ],
)
def test_values_out_of_range_are_named_with_what_they_must_be(write, key, value, requirement):
    with pytest.raises(ConfigError) as error:
        load_config(write(MINIMAL), [f"{key}={value}"])
    assert f"recipe.yaml: {key} = " in str(error.value)
    assert requirement in str(error.value)


@pytest.mark.parametrize("text", ["", "train: {batch_size: 4}", "model: {width: 64}"])
def test_recipe_without_classes_says_so(write, text):
    with pytest.raises(ConfigError, match=r"recipe\.yaml: model\.classes must be given"):
        load_config(write(text))


@pytest.mark.parametrize("text", ["[1, 2]", "5", "foo", "- model\n- data"])
def test_file_without_sections_says_which_belong_there(write, text):
    with pytest.raises(
        ConfigError, match=r"recipe\.yaml is not a recipe: .*sections model, data, train and evaluation"
    ):
        load_config(write(text))


def test_file_that_is_no_yaml_is_named_with_the_place_of_the_fault(write, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)recipe\.yaml is not a readable recipe: .*line 2"):
        load_config(write("model:\n  classes: [a\n"))
    (tmp_path / "image.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match=r"image\.yaml is not a readable recipe"):
        load_config(tmp_path / "image.yaml")


def test_recipe_cannot_run_code(write, tmp_path):
    with pytest.raises(ConfigError, match="python/object/apply"):
        load_config(write(f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["missing.yaml", ""])
def test_missing_file_and_folder_are_named(tmp_path, name):
    with pytest.raises(ConfigError, match="There is no recipe"):
        load_config(tmp_path / name)


def test_model_section_travels_as_plain_values():
    values = as_dict(CHANGED.model)
    assert set(leaves(values)) == {key[len("model.") :] for key in settings(CHANGED) if key.startswith("model.")}
    assert model_config(values) == CHANGED.model
    with pytest.raises(ConfigError, match=r"unknown key 'widht' \(did you mean 'width'\?\)"):
        model_config({"classes": ["a"], "widht": 3})


def test_recipes_made_in_python_are_checked_alike():
    validate(CHANGED)
    validate_model(CHANGED.model)
    with pytest.raises(ConfigError, match=r"train\.optimizer = 'sdg'"):
        validate(dataclasses.replace(CHANGED, train=TrainConfig(optimizer="sdg")))
    with pytest.raises(ConfigError, match=r"model\.width = 0"):
        validate(Config(model=ModelConfig(classes=["a"], width=0)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_by_path_and_by_name_and_are_named_after_what_they_hold(path):
    config = load_config(path)
    assert load_config(path.stem) == config
    size, backbone, _ = path.stem.removeprefix("refinedet").split("_", 2)
    assert config.model.input_size == [int(size), int(size)]
    assert backbone in config.model.backbone.name


# The authors' training scripts: images of an epoch, batch, rate, iterations (in thousands) at which the rate falls, the
# factor, and iterations in all. The COCO sets are trainval35k, which has the images of train2017.
SCRIPTS = {
    "vgg16_voc07": (16551, 32, 1e-3, [80, 100], 0.1, 120),
    "vgg16_voc12": (21503, 32, 1e-3, [160, 200], 0.1, 240),
    "vgg16_coco": (118287, 32, 1e-3, [280, 360], 0.1, 400),
    "resnet101_coco": (118287, 32, 1e-3, [280, 360], 0.1, 400),
    "vgg16_voc07_from_coco": (16551, 32, 5e-5, [80], 0.2, 120),
    "vgg16_voc12_from_coco": (21503, 32, 5e-5, [120], 0.2, 160),
}


@pytest.mark.parametrize("size", [320, 512])
@pytest.mark.parametrize("name", SCRIPTS)
def test_recipes_of_the_paper_train_as_the_authors_scripts_rounded_to_epochs(name, size):
    images, batch_size, rate, boundaries, factor, iterations = SCRIPTS[name]
    if (name, size) == ("resnet101_coco", 512):
        batch_size, boundaries, iterations = 20, [400, 480], 540
    train = load_config(f"refinedet{size}_{name}").train

    def epochs(thousands):
        return round(1000 * thousands * batch_size / images)

    assert (train.epochs, train.decay_epochs) == (epochs(iterations), [epochs(at) for at in boundaries])
    assert (train.batch_size, train.learning_rate, train.decay_rate) == (batch_size, rate, factor)
    assert (train.optimizer, train.schedule, train.warmup_steps) == ("sgd", "multistep", 0)
    assert (train.momentum, train.weight_decay, train.class_map is None) == (0.9, 5e-4, "from_coco" not in name)


def test_shipped_recipes_are_listed_and_an_unknown_name_gets_the_nearest():
    assert list_recipes() == [path.stem for path in RECIPES] and RECIPES
    with pytest.raises(
        ConfigError, match=r"no recipe 'refinedet320_vgg_voc07' \(did you mean 'refinedet320_vgg16_voc07'"
    ):
        load_config("refinedet320_vgg_voc07")


def test_the_names_of_coco_stand_once():
    assert sum("toothbrush" in path.read_text() for path in RECIPES) == 1


def test_a_recipe_gives_only_what_differs_from_its_base(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "first.yaml").write_text(
        "model: {classes: [a, b], width: 8, backbone: {name: mobilenet_v1, alpha: 0.5}}\n"
        "train: {epochs: 5, decay_epochs: [1, 2]}\n"
    )
    (tmp_path / "below/second.yaml").write_text("base: ../first.yaml\nmodel: {classes: [c], backbone: {alpha: 0.25}}\n")
    (tmp_path / "below/third.yaml").write_text("train: {decay_epochs: [3]}\nbase: second.yaml\n")
    config = load_config(tmp_path / "below/third.yaml", ["train.seed=7"])
    expected = Config(model=ModelConfig(classes=["c"], width=8), train=TrainConfig(epochs=5, decay_epochs=[3], seed=7))
    expected.model.backbone.name, expected.model.backbone.alpha = "mobilenet_v1", 0.25
    assert config == expected
    # A base may also be a shipped recipe; the saved recipe is complete.
    (tmp_path / "own.yaml").write_text("base: refinedet320_vgg16_voc07\nmodel: {classes: [cat]}\n")
    own = load_config(tmp_path / "own.yaml")
    assert own.train == load_config("refinedet320_vgg16_voc07").train and own.model.classes == ["cat"]
    save_config(own, tmp_path / "saved.yaml")
    assert "base" not in (tmp_path / "saved.yaml").read_text()
    (tmp_path / "own.yaml").unlink()
    assert load_config(tmp_path / "saved.yaml") == own


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ({"a": "a.yaml"}, r"a\.yaml -> \S*a\.yaml: the bases form a circle"),
        ({"a": "b.yaml", "b": "c.yaml", "c": "./b.yaml"}, r"a\.yaml -> \S*b\.yaml -> \S*c\.yaml -> .*form a circle"),
        ({"a": "b.yaml", "b": "refinedet320_vgg16_vok07"},
         r"a\.yaml -> \S*b\.yaml: base: There is no recipe 'refinedet320_vgg16_vok07' \(did you mean 'refinedet320"),
        ({"a": "[b.yaml]"}, r"a\.yaml: base = \['b\.yaml'\]: must be the name or the path"),
        ({"a": ""}, r"a\.yaml: base = None"),
    ],
)  # fmt: skip
def test_wrong_bases_are_named_with_the_chain(tmp_path, bases, message):
    for name, base in bases.items():
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}\n{MINIMAL}")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "a.yaml")


ALIAS_BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIAS_BOMB, "aliases are not supported"),
        ("model: " + "[" * 1000 + "]" * 1000, "it nests too deeply"),
        ("model: " + "[" * 50 + "]" * 50, "nests more than 20 levels"),
        (MINIMAL + "train: {epochs: .inf}", "could not be converted to Integer"),
        (MINIMAL + "train: {learning_rate: 1" + "0" * 400 + "}", "a number is too large"),
        (MINIMAL + "train: {epochs: " + "9" * 5000 + "}", "not a readable recipe"),
        (MINIMAL + "train: {weights: 2001-01-01}", "is a date; quote it"),
        (MINIMAL + "train: {weights: 2001-99-99}", "not a readable recipe"),
        (MINIMAL + "train: {weights: !!binary aGVsbG8=}", "is a bytes"),
        (MINIMAL + "train: {weights: !!set {a, b}}", "is a set"),
        ("model: {classes: [cat], 3: 4}", "the key 3 must be a name"),
        ("model: {classes: [cat], ? [a] : 4}", "not a readable recipe"),
        ("model: {classes: {a: b}}", "recipe.yaml"),
        ("model: {classes: [cat], input_size: [128, {a: b}]}", "model.input_size"),
        (MINIMAL + "train: {decay_epochs: [{a: 1}]}", "train.decay_epochs"),
        ("model: {classes: [cat], score_thresholds: {cat: [1]}}", "model.score_thresholds"),
    ],
)
def test_odd_files_are_refused_at_once(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(text))


ODD_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3), st.dates(),
        st.sampled_from(["???", "${oc.env:PATH}", "${", 10**400, -(10**400)]),
    ),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text() | st.integers(), values, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = st.sampled_from(["model", "data", "train", "base", *settings(CHANGED)])


@given(st.dictionaries(KEYS, ODD_VALUES, max_size=4))
@hypothesis.settings(max_examples=100, deadline=None)
def test_any_value_of_any_key_is_taken_or_refused_in_words(tmp_path_factory, changes):
    recipe = {"model": {"classes": ["cat"], "backbone": {"name": "mobilenet_v1"}}}
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = recipe
        for entry in sections:
            section = section.setdefault(entry, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict):
            section[name] = value
    path = tmp_path_factory.getbasetemp() / "odd.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with contextlib.suppress(ConfigError):
        validate(load_config(path))


@pytest.mark.parametrize("text", ["${oc.env:PATH}", "${model.width}", "${", r"\${x}", r"a\\${b}", "$x", "{}", r"\\"])
def test_values_are_data_and_nothing_in_them_is_replaced(write, tmp_path, text):
    expected = ModelConfig(classes=[text])
    assert model_config(as_dict(expected)) == expected
    config = load_config(write(yaml.safe_dump({"model": {"classes": [text]}, "train": {"weights": text}})))
    assert config.model == expected and config.train.weights == text
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    with pytest.raises(ConfigError, match=r"model\.width"):
        load_config(write(MINIMAL), ["model.width=${oc.env:PATH}"])
