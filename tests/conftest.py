import functools
import inspect
import os
import re

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

torch.set_num_threads(1)  # the same sums in every run
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a hub
with_shapes = jaxtyping.jaxtyped


def has_shapes(fn):
    """Whether an annotation of the function names something of jaxtyping's."""
    for said in fn.__annotations__.values():
        named = re.findall(r"\w+", said) if isinstance(said, str) else []
        values = [said, *(fn.__globals__.get(n) for n in named)]
        if any("jaxtyping" in repr(v) for v in values):
            return True
    return False


def jaxtyped(*, typechecker):
    """What --jaxtyping-packages puts around every function of `hra`. Where no shape is
    to be remembered, the type checker alone makes the same checks, in a tenth of the
    time that jaxtyping takes for a call.
    """

    def around(fn):
        if (
            not inspect.isfunction(fn)
            or inspect.isgeneratorfunction(fn)
            or has_shapes(fn)
        ):
            return with_shapes(fn, typechecker=typechecker)
        checked = typechecker(fn)

        @functools.wraps(fn)
        def call(*args, **kwargs):
            if jaxtyping.config.jaxtyping_disable:
                return fn(*args, **kwargs)
            try:
                return checked(*args, **kwargs)
            except BeartypeCallHintViolation as e:
                raise jaxtyping.TypeCheckError(str(e)) from e

        return call

    return around


jaxtyping.jaxtyped = jaxtyped


@pytest.fixture
def untyped():
    """Without the type checks that pytest adds, as a user has it: the library's own
    errors are then what is seen.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
