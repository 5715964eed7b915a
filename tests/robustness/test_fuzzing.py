"""A few hundred damaged files of every kind; `make fuzz` tries 20,000."""

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.robustness.fuzzing import TARGETS, damaged, is_refused


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.in_suite])
def test_damaged_files_are_read_or_refused_in_words(name, tmp_path):
    target = TARGETS[name]
    seeds = target.seeds(tmp_path)
    assert not any(is_refused(target, tmp_path, seed) for seed in seeds)
    refused = []

    @hypothesis.settings(
        max_examples=round(200 * target.share),
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def read(data):
        refused.append(is_refused(target, tmp_path, data.draw(damaged(seeds))))

    read()
    assert any(refused) or name == "pictures in a graph"
