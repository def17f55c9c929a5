"""The loop: it stops, resumes and reports as it says."""

import copy

import pytest
import torch

import hra
from hra import schedules


def setup(seed=0):
    model = hra.zoo.gpt2("random", seed=seed)
    ids = torch.randint(256, (600,), generator=torch.Generator().manual_seed(seed))
    return model, lambda: hra.data.lm_batches(ids, 2, 16, seed=1)


def tuned(model):
    return hra.attach(model, hra.LoRA, targets="c_attn", r=2)


def test_resumed_training_ends_where_an_unbroken_run_ends(tmp_path):
    model, batches = setup()
    torch.manual_seed(0)  # the random GPT-2 has dropout
    whole = tuned(copy.deepcopy(model))
    log = hra.fit(whole, batches(), 12, 1e-2, progress=False)
    torch.manual_seed(0)
    first = tuned(copy.deepcopy(model))
    hra.fit(
        first,
        batches(),
        12,
        1e-2,
        progress=False,
        checkpoint=tmp_path / "c",
        every=4,
        callback=lambda log: len(log.steps) < 6,
    )
    torch.manual_seed(9)
    second = tuned(copy.deepcopy(model))
    again = hra.fit(
        second, batches(), 12, 1e-2, progress=False, checkpoint=tmp_path / "c", every=4
    )
    assert again.losses == log.losses
    assert all(
        torch.equal(v, second.state_dict()[k]) for k, v in whole.state_dict().items()
    )
    with pytest.raises(ValueError, match="of another run"):
        hra.fit(second, batches(), 13, 1e-2, progress=False, checkpoint=tmp_path / "c")


def test_the_log_and_the_mode():
    model, batches = setup()
    t = tuned(model)
    log = hra.fit(
        t,
        list(x for _, x in zip(range(3), batches(), strict=False)),
        7,
        1e-2,
        progress=False,
        every=3,
        evaluate=lambda: 1.5,
    )
    assert (
        len(log.steps) == 7
        and [e["step"] for e in log.evaluations] == [3, 6, 7]
        and not model.training
    )
    assert log.plot().savefig and "7 steps" in repr(log)


def test_training_goes_on_in_training_mode_after_an_evaluation():
    model, batches = setup()
    modes = []

    def evaluate():
        model.eval()
        return 0.0

    hra.fit(
        tuned(model),
        batches(),
        4,
        1e-2,
        progress=False,
        every=2,
        evaluate=evaluate,
        callback=lambda log: modes.append(model.training),
    )
    assert modes == [True] * 4 and not model.training


def test_the_callback_stops():
    model, batches = setup()
    assert (
        len(
            hra.fit(
                tuned(model),
                batches(),
                50,
                1e-2,
                progress=False,
                callback=lambda g: len(g.steps) < 4,
            ).steps
        )
        == 4
    )


@pytest.mark.parametrize(
    "kw",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"clip": 0.0},
        {"weight_decay": -1.0},
        {"every": 0},
    ],
)
def test_bad_settings(kw):
    model, batches = setup()
    with pytest.raises(ValueError, match=next(iter(kw))):
        hra.fit(
            tuned(model), batches(), **{"steps": 2, "lr": 1e-3, "progress": False, **kw}
        )


def test_batches_that_run_out_and_a_loss_that_is_not_finite():
    model, batches = setup()
    t = tuned(model)
    with pytest.raises(RuntimeError, match="ran out after 1 of 3"):
        hra.fit(t, iter([next(batches())]), 3, 1e-3, progress=False)
    with torch.no_grad():
        next(iter(t.adapters.values())).B.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the loss is nan at step 1"):
        hra.fit(t, batches(), 3, 1e-3, progress=False)


def test_cosine():
    shape = schedules.cosine(warmup=0.2, floor=0.1)
    values = [shape(i, 100) for i in range(100)]
    assert values[0] == pytest.approx(0.05) and values[19] == 1.0 == max(values)
    assert values[20:] == sorted(values[20:], reverse=True) and values[
        -1
    ] == pytest.approx(0.1, abs=1e-3)
