"""Adds the recipes, which a checkout keeps in `configs`, to the package. Everything else is in setup.cfg."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["refinedet_tf*"]), "refinedet_tf.configs"],
    package_dir={"refinedet_tf.configs": "configs"},
)
