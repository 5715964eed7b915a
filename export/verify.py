"""The same as `refinedet verify`, from a checkout."""

import sys

from refinedet_tf.cli.main import run_command

if __name__ == "__main__":
    run_command("verify", sys.argv[1:])
