import os

import jaxtyping
import pytest
import torch

torch.set_num_threads(1)  # the same sums in every run
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a hub


@pytest.fixture
def untyped():
    """Without the type checks that pytest adds, as a user has it: the library's own
    errors are then what is seen.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
