"""Mutation testing: changes the code in one place at a time and counts how often the module's own tests fail.

    python benchmarks/mutants.py --count=100

The changes are those of Cosmic Ray's operators: another operator or number, a negated condition, a removed decorator, a
loop that is never entered. Type annotations are left out. A mutant is a random place in the package with one of the
changes that are possible there. The draw depends only on `--seed` and the text of the place, so it stays the same when
code changes elsewhere. Each mutant is tested in a copy of the checkout, and its result is appended to the results file
at once: the next call continues where this one stopped.
"""

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import parso.tree
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "refinedet_tf"
NOT_COPIED = shutil.ignore_patterns(".*", "work", "build", "site", "__pycache__", "*.egg-info")
MAX_MEMORY = 12 * 2**30  # bytes for a test process: a mutant may allocate without limit
# New processes start with the imports that all tests share, which take longer than many tests.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "hypothesis", "tensorflow", "keras"])
# By exit code of pytest; "skipped" where the tests need a package that is not installed.
OUTCOMES = {None: "timeout", pytest.ExitCode.OK: "survived", pytest.ExitCode.NO_TESTS_COLLECTED: "skipped"}
# Test files of modules without a test file of the same name, the fastest first: a run ends with the first failure.
TESTS = {
    ".": ["test_packaging.py"],
    "backbones/__init__": ["backbones/test_backbones.py"],
    "backbones/definition": ["backbones/test_backbones.py", "weights/test_imagenet.py"],
    "backbones/freezing": ["test_freezing.py"],
    "backbones/library_models": ["backbones/test_kerascv.py", "backbones/test_kerashub.py"],
    "backbones/mobilenet": ["backbones/test_backbones.py", "backbones/test_edge.py"],
    "cli/detect": ["inference/test_files.py", "cli/test_commands.py"],
    "cli/draw_shapes": ["data/test_shapes.py"],
    "cli/inspect_data": ["cli/test_data_commands.py"],
    "cli/make_tfrecords": ["cli/test_data_commands.py"],
    "cli": ["cli/test_main.py", "cli/test_commands.py"],
    "config": ["test_config.py"],
    "data/augmentation/__init__": ["data/augmentation/test_augmentation.py"],
    "data/examples": ["data/readers/test_voc.py", "data/readers/test_coco.py", "data/test_pipeline.py"],
    "data/readers/annotations": ["data/readers/test_voc.py", "data/readers/test_coco.py", "data/readers/test_yolo.py"],
    "data/readers": ["data/readers", "data/test_class_selection.py", "data/test_splitting.py"],
    "data/record_writer": ["data/readers/test_tfrecords.py", "data/test_round_trip.py"],
    "evaluation/analysis": ["evaluation/analysis"],
    "evaluation/images": ["evaluation/test_evaluator.py", "evaluation/test_result_files.py", "evaluation/test_coco.py"],
    "evaluation/prediction": ["evaluation/test_protocols.py", "evaluation/test_evaluator.py"],
    "evaluation/robustness": ["evaluation/analysis/test_report.py"],
    "evaluation/tables": ["evaluation/test_evaluator.py", "evaluation/test_coco.py", "evaluation/test_voc.py"],
    "export": ["export/test_exports.py", "serving/test_onnx.py"],
    "inference/decoding": ["serving/test_tflite.py", "serving/test_onnx.py"],
    "inference/images": ["inference/test_detector.py", "test_pixels.py"],
    "inference/numpy_decoder": ["serving/test_tflite.py"],
    "inference/onnx_runner": ["serving/test_onnx.py"],
    "inference/saved_model_runner": ["inference/test_damaged_exports.py", "test_verification.py"],
    "network": ["test_model.py", "test_ablations.py", "backbones/test_vgg16.py", "backbones/test_resnet101.py"],
    "ops/image_headers": ["ops/test_images.py", "serving/test_signatures.py"],
    "ops/targets": ["test_losses.py", "test_keras_contract.py"],
    "serving": ["serving/test_signatures.py", "serving/test_tflite.py", "inference/test_damaged_exports.py"],
    "training/checkpoints": ["robustness/test_disk.py", "robustness/test_kills.py"],
    "training/report": ["training/test_trainer.py", "training/test_training_page.py"],
    "training/run_folder": ["training/test_trainer.py", "robustness/test_disk.py"],
    "training": ["training/test_trainer.py", "training/test_named_optimizers.py", "robustness"],
    "visualization": ["test_visualization.py"],
    "weights/class_maps": ["weights/test_load_weights.py", "weights/test_import_vgg16.py"],
    "weights/conversion/caffe": ["weights/files/test_caffe.py", "weights/test_import_vgg16.py"],
    "weights/files": ["weights/test_load_weights.py", "weights/test_saved_models.py", "weights/files"],
    "weights/names": ["weights/test_load_weights.py", "weights/test_import_vgg16.py"],
    "weights": ["weights"],
}


@dataclass(frozen=True)
class Mutant:
    """One change to the code.

    Attributes:
        key: a hash of the text of the place and of the operator.
        module: the path of the module below the package, without its ending.
        line: the line, from 1.
        occurrence: index of the place among those of the operator in the module.
        operator: Cosmic Ray's name of the change.
    """

    key: str
    module: str
    line: int
    occurrence: int
    operator: str

    @property
    def path(self) -> Path:
        """The module's file, relative to the project."""
        return Path(PACKAGE.name, f"{self.module}.py")

    def code(self) -> tuple[str, str]:
        """Returns the module's code before and after the change."""
        code = (PROJECT / self.path).read_text()
        return code, mutate_code(code, get_operator(self.operator)(), self.occurrence)


def draw(count: int, seed: int) -> list[Mutant]:
    """Draws mutants from the whole package: the places with the smallest hashes."""
    places = collections.defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for text, mistake in _mistakes(path):
            places[_hash(f"{seed} {text}")].append(mistake)
    drawn = []
    for place, mistakes in sorted(places.items()):
        mutants = [Mutant(_hash(f"{place} {operator}"), *rest, operator) for *rest, operator in mistakes]
        valid = filter(_compiles, sorted(mutants, key=lambda mutant: mutant.key))
        drawn += [mutant for mutant in [next(valid, None)] if mutant]
        if len(drawn) == count:
            break
    return drawn


def _mistakes(path: Path) -> list[tuple[str, tuple]]:
    """Returns (text of a place, (module, line, occurrence, operator)) for every possible change."""
    module, code = path.relative_to(PACKAGE).with_suffix("").as_posix(), path.read_text()
    nodes, lines, found = list(ast_nodes(get_ast(code))), code.splitlines(), []
    for names in _operators():
        operator, repeated, occurrence = get_operator(names[0])(), collections.Counter(), -1
        for node in nodes:
            for (line, column), _ in operator.mutation_positions(node):
                occurrence += 1
                if _is_annotation(node):
                    continue
                text = f"{module} {names[0].split('_')[0]} {column} {lines[line - 1]}"
                repeated[text] += 1
                found += [(f"{text} {repeated[text]}", (module, line, occurrence, name)) for name in names]
    return found


def _operators() -> list[list[str]]:
    """Returns Cosmic Ray's operators, grouped by the places to which they apply."""
    groups = collections.defaultdict(list)
    for name in operator_names():
        if not get_operator(name).arguments():  # the others need arguments
            groups[name.rsplit("_", 1)[0] if "BinaryOperator" in name else name].append(name)
    return list(groups.values())


def _compiles(mutant: Mutant) -> bool:
    """Whether a mutant is valid Python: Cosmic Ray also replaces the star between parameters, as if it multiplied."""
    try:
        compile(mutant.code()[1], mutant.module, "exec")
    except SyntaxError:
        return False
    return True


def _is_annotation(node: parso.tree.NodeOrLeaf) -> bool:
    while node.parent is not None:
        parent = node.parent
        if (
            parent.type == "tfpdef"
            or (parent.type == "annassign" and node is parent.children[1])
            or (parent.type == "funcdef" and node is parent.annotation)
        ):
            return True
        node = parent
    return False


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tests_of(module: str) -> list[str]:
    """Returns the test files of a module: the one of the same name, else those listed for it or for its folder."""
    path = Path(module)
    own = Path("tests", path.parent, f"test_{path.name}.py")
    if (PROJECT / own).exists():
        return [str(own)]
    entry = next(str(part) for part in (path, *path.parents) if str(part) in TESTS)
    return [f"tests/{name}" for name in TESTS[entry]]


def try_mutant(mutant: Mutant, timeout: float) -> dict:
    """Runs the tests of a mutant's module in a copy of the project and returns the outcome."""
    before, after = mutant.code()
    changes = [pair for pair in zip(before.splitlines(), after.splitlines(), strict=False) if pair[0] != pair[1]]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree, log = Path(folder, "project"), Path(folder, "log")
        shutil.copytree(PROJECT, tree, ignore=NOT_COPIED)
        (tree / mutant.path).write_text(after)
        process = CONTEXT.Process(target=_run_tests, args=(str(tree), tests_of(mutant.module), str(log)))
        process.start()
        try:
            process.join(timeout)
            outcome = OUTCOMES.get(process.exitcode, "noticed")
        finally:
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)
        output = log.read_text(errors="replace")
    failures = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if process.exitcode == pytest.ExitCode.USAGE_ERROR:
        raise SystemExit(f"The tests of {mutant.module} cannot be run:\n{output}")
    return {
        "key": mutant.key,
        "place": f"{mutant.path}:{mutant.line}",
        "operator": mutant.operator.removeprefix("core/"),
        "before": changes[0][0].strip() if changes else "",
        "after": changes[0][1].strip() if changes else "",
        "outcome": outcome,
        "failure": (failures or [f"exit code {process.exitcode}"])[0],
        "seconds": round(time.monotonic() - started),
    }


def _run_tests(tree: str, tests: list[str], log: str) -> None:
    """Runs the tests; called in a new process, which becomes the leader of its process group."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": tree, "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, tree)
    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))


def summary(results: list[dict], count: int) -> str:
    """Returns the score and the survivors."""
    results = [result for result in results if result["outcome"] != "skipped"]
    survivors = [result for result in results if result["outcome"] == "survived"]
    noticed = len(results) - len(survivors)
    share = f", {100 * noticed / len(results):.0f} %" if results else ""
    lines = [f"{len(results)} of {count} mutants tested, {noticed} noticed{share}"]
    for result in sorted(survivors, key=lambda result: result["place"]):
        lines += [f"{result['place']} ({result['operator']})", f"  - {result['before']}", f"  + {result['after']}"]
    return "\n".join(lines)


def main() -> None:
    """Tests the mutants that have no result yet, then prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--limit", type=int, default=None, help="mutants to test in this call; all by default")
    parser.add_argument("--output", default="work/mutants.jsonl", help="the results, one JSON object a line")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for the tests of a mutant")
    parser.add_argument("--survivors", action="store_true", help="test the survivors again")
    arguments = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped; the next call goes on."))
    drawn, output = draw(arguments.count, arguments.seed), Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = output.read_text().splitlines() if output.exists() else []
    results = {result["key"]: result for result in map(json.loads, lines)}
    if arguments.survivors:
        results = {key: result for key, result in results.items() if result["outcome"] != "survived"}
    left = [mutant for mutant in drawn if mutant.key not in results]
    for mutant in left[: arguments.limit]:
        result = try_mutant(mutant, arguments.timeout)
        results[mutant.key] = result
        with output.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{result['outcome']:9}{result['seconds']:5} s  {result['place']}  {result['after']}", flush=True)
    print(summary([results[mutant.key] for mutant in drawn if mutant.key in results], arguments.count))


if __name__ == "__main__":
    main()
