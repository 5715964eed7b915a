"""One exported model for all tests of what was exported."""

import pytest


@pytest.fixture(scope="session")
def exported(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "saved_model"
    tiny_model.export(path)
    return path
