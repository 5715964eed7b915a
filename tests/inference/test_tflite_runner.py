"""What runs an exported file is apart from what writes one."""

import subprocess
import sys

from tests.conftest import PROJECT

# Imports one module of the package without its `__init__`, which offers everything, and lists what came with it.
IMPORTS = """
import sys, types
package = types.ModuleType("refinedet_tf")
package.__path__ = ["refinedet_tf"]
sys.modules["refinedet_tf"] = package
import refinedet_tf.inference.tflite_runner
print(*(name for name in sys.modules if name.startswith("refinedet_tf.")))
"""


def test_opening_a_file_imports_no_converter():
    result = subprocess.run([sys.executable, "-c", IMPORTS], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    assert "refinedet_tf.serving.metadata" in imported
    # (`import tensorflow` itself loads its converter and Keras.)
    writers = ("tflite", "tensor_ranges", "frozen", "signatures", "saved_model", "warmup")
    assert not imported & {f"refinedet_tf.serving.{name}" for name in writers}
    rooms = {name.split(".")[1] for name in imported}
    assert rooms == {"errors", "inference", "ops", "serving"}
