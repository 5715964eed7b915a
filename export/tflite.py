"""The same as `refinedet export-tflite`, from a checkout."""

import sys

from refinedet_tf.cli.main import run_command

if __name__ == "__main__":
    run_command("export-tflite", sys.argv[1:])
