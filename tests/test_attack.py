"""A few hundred attacked adapter files; `make attack` runs twenty thousand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import attack


@pytest.mark.parametrize("seed", [0, 1])
def test_attacked_files_are_refused_in_time_and_in_words(seed, tmp_path):
    bad, refused = attack.attack(250, seed, tmp_path)
    assert not bad
    assert refused > 200
