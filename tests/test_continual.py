"""AP, FWT and BWT of a sequence of tasks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hra import continual


def test_three_tasks_by_hand():
    P = torch.tensor([[0.8, 0.1, 0.2], [0.6, 0.9, 0.3], [0.5, 0.7, 0.6]])
    P0 = torch.tensor([0.8, 0.7, 0.7])
    found = continual.metrics(P, P0)
    assert found.AP == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert found.FWT == pytest.approx((0.0 + 0.2 - 0.1) / 3)
    assert found.BWT == pytest.approx((-0.3 - 0.2) / 2)
    P[0, 1:] = P[1, 2] = float("nan")  # never measured, never used
    assert continual.metrics(P, P0) == found


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(0, 10**6), st.floats(-3.0, 3.0))
def test_what_each_of_them_sees(N, seed, shift):
    g = torch.Generator().manual_seed(seed)
    P = torch.rand(N, N, generator=g, dtype=torch.float64)
    P0 = torch.rand(N, generator=g, dtype=torch.float64)
    AP, FWT, BWT = continual.metrics(P, P0)
    # the same tasks on another scale; and AP told apart into what the parts say
    assert continual.metrics(P + shift, P0 + shift) == pytest.approx(
        (AP + shift, FWT, BWT), abs=1e-9
    )
    assert AP == pytest.approx(P0.mean().item() + FWT + (N - 1) / N * BWT)
    kept = P.clone()
    kept[-1] = P.diagonal()  # nothing is forgotten
    assert continual.metrics(kept, P0)[1:] == pytest.approx((FWT, 0.0))


@pytest.mark.parametrize(
    ("shape", "tasks"), [((3, 2), 3), ((2, 2), 3), ((1, 1), 1), ((3, 3), 2)]
)
def test_other_shapes_are_refused(shape, tasks):
    with pytest.raises((ValueError, TypeError)):
        continual.metrics(torch.zeros(shape), torch.zeros(tasks))


def test_a_number_that_is_none_is_refused():
    P = torch.eye(2)
    P[1, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or Inf"):
        continual.metrics(P, torch.ones(2))


def test_a_sequence_is_trained_in_turn_and_scored_after_each():
    """A model of one number that each task moves; its score is how near it is."""
    state, told = {"w": 0.0}, []
    aims = {"a": 1.0, "b": 3.0, "c": 2.0}
    tasks = [
        continual.Task(
            k,
            lambda v=v: state.update(w=v),
            lambda v=v: torch.tensor(-abs(state["w"] - v)),
        )
        for k, v in aims.items()
    ]
    whole = continual.sequence(tasks, ahead=True, after=told.append)
    assert whole.tolist() == [[0, -2, -1], [-2, 0, -1], [-1, -1, 0]]
    assert told == [0, 1, 2]
    P = continual.sequence(tasks)
    below = torch.ones(3, 3).tril() > 0
    assert torch.equal(P[below], whole[below]) and P[~below].isnan().all()
    assert continual.metrics(P, torch.zeros(3)) == continual.metrics(
        whole, torch.zeros(3)
    )
    with pytest.raises(ValueError, match="score of 'a' after 'b' is nan"):
        continual.sequence(
            [tasks[0]._replace(score=lambda: state["w"] - 3 or float("nan")), tasks[1]]
        )
    for wrong in ([], [tasks[0], tasks[0]]):
        with pytest.raises(ValueError, match="different names"):
            continual.sequence(wrong)
