"""`python -m refinedet_tf` is the console command `refinedet`."""

from refinedet_tf.cli.main import run

run()
