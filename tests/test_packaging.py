"""What pip installs: metadata, declared requirements, the files of the wheel, and what an import costs."""

import ast
import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement

import refinedet_tf as rd
from tests.conftest import PROJECT

# Import names that differ from the names of their distributions.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "google": "protobuf",
    "grpc": "grpcio",
    "tensorflow_serving": "tensorflow-serving-api",
    "yaml": "pyyaml",
}


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser(comment_prefixes="#")
    parser.read(PROJECT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The files and the metadata of a wheel that is built from a clean copy of the sources."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("refinedet_tf", "configs"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={dist}", str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = dist.iterdir()
    with zipfile.ZipFile(path) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return set(archive.namelist()), archive.read(metadata).decode()


def requirements(setup, *extras):
    texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    return {re.sub("[-_]+", "-", Requirement(line).name.lower()): Requirement(line) for line in lines}


def imported(folder):
    """Distributions that the modules of a folder import themselves."""
    names = set()
    for path in (PROJECT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    own = {
        "refinedet_tf",
        "tests",
        "export",
        "benchmarks",
        "decode_detections",
    }  # the last lies beside an exported file
    names -= sys.stdlib_module_names | own
    return {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in names}


def test_every_imported_package_is_declared_with_bounds_that_what_is_installed_meets(setup):
    core, extras = requirements(setup), requirements(setup, *setup["options.extras_require"])
    optional = extras.keys() - core.keys()
    used = imported("refinedet_tf")
    assert used <= core.keys() | optional, "declare these in setup.cfg"
    # TensorFlow writes its logs for TensorBoard with that package's help, but we do not import it.
    assert core.keys() - {"tensorboard"} <= used, "declared but not imported"
    for name, requirement in core.items():
        assert sorted(each.operator for each in requirement.specifier) == ["<", ">="], name
        assert requirement.specifier.contains(importlib.metadata.version(name), prereleases=True), name


def test_tests_and_benchmarks_import_declared_packages_only(setup):
    declared = requirements(setup, *setup["options.extras_require"]).keys()
    assert imported("tests") | imported("benchmarks") | imported("export") <= {*declared, "packaging"}


def test_the_wheel_holds_the_library_the_recipes_and_nothing_else(wheel):
    files, _ = wheel
    expected = {
        path.relative_to(PROJECT).as_posix()
        for path in (PROJECT / "refinedet_tf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"refinedet_tf/py.typed", "refinedet_tf/__init__.pyi", "refinedet_tf/weights/coco_to_voc.yaml"} <= expected
    recipes = {f"refinedet_tf/configs/{name}.yaml" for name in rd.list_recipes()}
    assert {name for name in files if ".dist-info/" not in name} == expected | recipes
    assert any(name.endswith("/LICENSE") for name in files)


def test_metadata_are_complete_and_the_version_stands_once(wheel, setup):
    _, metadata = wheel
    fields = dict(re.findall(r"^([\w-]+): (.*)$", metadata.split("\n\n")[0], flags=re.MULTILINE))
    assert fields["Version"] == rd.__version__ and setup["metadata"]["version"] == "attr: refinedet_tf.__version__"
    assert {"Summary", "Home-page", "License", "Requires-Python", "Keywords", "Classifier"} <= fields.keys()
    assert rd.__version__ in (PROJECT / "CHANGELOG.md").read_text()
    # Claimed is what docs/versions.md says the whole suite has run on; pip accepts more.
    page = (PROJECT / "docs/versions.md").read_text(encoding="utf-8")
    tested = set(re.findall(r"\| (3\.\d+) \| the whole suite", page))
    assert tested and set(re.findall(r"Python :: (3\.\d+)", metadata)) == tested
    assert fields["Requires-Python"] in (">=3.10,<3.14", "<3.14,>=3.10")


def test_every_public_name_can_be_imported_and_is_documented():
    assert set(rd.__all__) == set(dir(rd)) and len(rd.__all__) > 30
    for name in rd.__all__:
        assert getattr(rd, name).__doc__, name
    namespace = {}
    exec("from refinedet_tf import *", namespace)
    assert set(rd.__all__) <= namespace.keys()
    with pytest.raises(AttributeError, match="nonsense"):
        _ = rd.nonsense


def test_errors_of_the_user_are_public_and_of_one_kind():
    from refinedet_tf import errors

    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and kind.__module__ == errors.__name__
    }
    assert all(issubclass(kind, rd.RefineDetError) for kind in kinds.values())
    assert kinds.keys() <= set(rd.__all__)


def test_importing_the_package_imports_nothing_heavy():
    code = """if True:
        import sys
        import refinedet_tf as rd
        heavy = {"tensorflow", "keras", "keras_cv", "matplotlib", "tensorflow_datasets", "pycocotools", "PIL", "h5py"}
        rd.load_config("refinedet320_vgg16_voc07")
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        from tensorflow import keras
        keras.Model  # imports Keras and, of its own accord, matplotlib
        before = set(sys.modules)
        rd.RefineDet, rd.build_model, rd.load_model, rd.Detector, rd.RefineDetLoss
        added = sys.modules.keys() - before
        late = {"keras_cv", "tensorflow_datasets", "pycocotools", "tensorflow_serving", "refinedet_tf.training"}
        assert not late & added, late & added
        assert not {name for name in added if name.startswith("matplotlib")}
    """
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
