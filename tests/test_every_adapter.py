"""What is true of every adapter: the checks of `hra.testing` on every method, on both
weight layouts. A new method is one line in CASES.
"""

import itertools

import pytest
import torch

import hra
from hra import testing


def SHARED(count):
    """So many numbers for all sites together."""
    return lambda m, n: count / 3  # the suite's model has three


def STRUCT(m, n):
    """Columns 2, 7, … and the diagonal, less what is in both."""
    columns = range(2, n, 5)
    return len(columns) * m + min(m, n) - sum(c < min(m, n) for c in columns)


def r_hat(m, n, r, half_up=False, even=False):
    """MoRA's ⌊√((d_in + d_out) r)⌋, by search."""
    side = next(k for k in itertools.count() if (k + 1) ** 2 > (m + n) * r)
    side += half_up and (2 * side + 1) ** 2 <= 4 * (m + n) * r
    return side - side % 2 if even else side


def SUBNET(m, n):
    """p = 2/5 of the outputs and of the inputs."""
    return (2 * m // 5) * (2 * n // 5)


def SCORES(site, W):
    """What a mask is made from, for any layer: positive, no two alike, not drawn."""
    k = torch.arange(W.numel(), dtype=torch.float64) + len(site)
    return (1e4 * (k + 1).sin()).sin().abs().reshape(W.shape)


# gates that are open in eval mode, and not so wide that all of a gradient is cut off
GATES = {"start": 1.0, "gate_lr": 0.01, "gamma": -0.1, "zeta": 1.1}

# name: (class, hyperparameters, how many numbers train at a d_out × d_in layer)
CASES = {
    "FullFT": (hra.FullFT, {}, lambda m, n: m * n),
    "LoRA": (hra.LoRA, {"r": 4}, lambda m, n: 4 * (m + n)),
    "LoRA-dropout": (hra.LoRA, {"r": 3, "dropout": 0.2}, lambda m, n: 3 * (m + n)),
    "RsLoRA": (hra.RsLoRA, {"r": 4, "alpha": 2.0}, lambda m, n: 4 * (m + n)),
    "LoRAPlus": (hra.LoRAPlus, {"r": 4, "ratio": 4.0}, lambda m, n: 4 * (m + n)),
    "LoRAFA": (hra.LoRAFA, {"r": 4}, lambda m, n: 4 * m),
    "LoRAFA-dropout": (hra.LoRAFA, {"r": 4, "dropout": 0.2}, lambda m, n: 4 * m),
    "LoRAFA-project": (hra.LoRAFA, {"r": 4, "project": True}, lambda m, n: 4 * m),
    "AsyLoRA-B": (hra.AsyLoRA, {"r": 4}, lambda m, n: 4 * m),
    "AsyLoRA-A": (hra.AsyLoRA, {"r": 4, "train": "A"}, lambda m, n: 4 * n),
    "DoRA": (hra.DoRA, {"r": 4}, lambda m, n: 4 * (m + n) + m),
    "DoRA-norm": (
        hra.DoRA,
        {"r": 4, "detach_norm": False},
        lambda m, n: 4 * (m + n) + m,
    ),
    "DoRA-dropout": (hra.DoRA, {"r": 3, "dropout": 0.2}, lambda m, n: 3 * (m + n) + m),
    "VeRA": (hra.VeRA, {"r": 10}, lambda m, n: m + 10),
    "VeRA-wide": (hra.VeRA, {"r": 50}, lambda m, n: m + 50),
    "NOLA": (hra.NOLA, {"r": 4, "k": 9, "l": 11}, lambda m, n: 20),
    "PRANC": (hra.PRANC, {"m": 30}, SHARED(30)),
    "SHiRA-rand": (hra.SHiRA, {"density": 0.2}, lambda m, n: round(0.2 * m * n)),
    "SHiRA-weight": (
        hra.SHiRA,
        {"mask": "weight", "count": 30, "offset": 1},
        lambda m, n: 30,
    ),
    "SHiRA-struct": (
        hra.SHiRA,
        {"mask": "struct", "every": 5, "offset": 2, "axis": "column"},
        STRUCT,
    ),
    "SHiRA-hook": (hra.SHiRA, {"density": 0.2, "form": "hook"}, lambda m, n: m * n),
    "SHiRA-delta": (
        hra.SHiRA,
        {"density": 0.2, "form": "delta", "alpha": 0.5},
        lambda m, n: round(0.2 * m * n),
    ),
    "MoRA": (hra.MoRA, {"r": 3}, lambda m, n: r_hat(m, n, 3) ** 2),
    "MoRA-wide": (hra.MoRA, {"r": 12, "fold": True}, lambda m, n: r_hat(m, n, 12) ** 2),
    "MoRA-dropout": (
        hra.MoRA,
        {"r": 4, "dropout": 0.2, "rounding": "round"},
        lambda m, n: r_hat(m, n, 4, half_up=True) ** 2,
    ),
    "MoRA-block": (
        hra.MoRA,
        {"r": 3, "pattern": "block"},
        lambda m, n: r_hat(m, n, 3) ** 2,
    ),
    "MoRA-truncation": (
        hra.MoRA,
        {"r": 3, "operator": "truncation"},
        lambda m, n: r_hat(m, n, 3) ** 2,
    ),
    "MoRA-decoupling": (
        hra.MoRA,
        {"r": 1, "operator": "decoupling", "fold": True},
        lambda m, n: r_hat(m, n, 1) ** 2,
    ),
    "MoRA-rotation": (
        hra.MoRA,
        {"r": 1, "operator": "rotation", "fold": True, "rounding": "round"},
        lambda m, n: r_hat(m, n, 1, half_up=True, even=True) ** 2,
    ),
    "MoRA-rotation-dropout": (
        hra.MoRA,
        {"r": 2, "operator": "rotation", "fold": True, "dropout": 0.2},
        lambda m, n: r_hat(m, n, 2, even=True) ** 2,
    ),
    "ReMoRA": (
        hra.ReMoRA,
        {"r": 3, "every": 4, "rewarm": 2},
        lambda m, n: r_hat(m, n, 3) ** 2,
    ),
    "ReMoRA-permute": (
        hra.ReMoRA,
        {
            "r": 2,
            "every": 4,
            "rewarm": 2,
            "regroup": "permute",
            "operator": "rotation",
            "fold": True,
        },
        lambda m, n: r_hat(m, n, 2, even=True) ** 2,
    ),
    "ReLoRA": (hra.ReLoRA, {"r": 3, "every": 4, "rewarm": 2}, lambda m, n: 3 * (m + n)),
    "LoSiA": (hra.LoSiA, {"p": 0.4, "period": 2}, SUBNET),
    "LoSiAPro": (hra.LoSiAPro, {"p": 0.4, "period": 2}, SUBNET),
    "PartialFT": (
        hra.PartialFT,
        {"unit": "block", "size": 4, "count": 3},
        lambda m, n: 48,
    ),
    "FISH": (
        hra.FISH,
        {"scores": SCORES, "density": 0.2},
        lambda m, n: round(0.2 * m * n),
    ),
    "LTSFT": (hra.LTSFT, {"scores": SCORES, "count": 40}, lambda m, n: 40),
    "RoSA": (
        hra.RoSA,
        {"scores": SCORES, "r": 3, "density": 0.1},
        lambda m, n: 3 * (m + n) + round(0.1 * m * n),
    ),
    "SpIEL": (
        hra.SpIEL,
        {"density": 0.2, "every": 3, "gamma": 2},
        lambda m, n: round(0.2 * m * n),
    ),
    "SpIEL-MA": (
        hra.SpIEL,
        {"count": 40, "grow": "MA", "every": 3, "gamma": 1},
        lambda m, n: 40,
    ),
    "SoRA": (hra.SoRA, {"r": 4}, lambda m, n: 4 * (m + n + 1)),
    "SparseAdapterLoRA": (
        hra.SparseAdapterLoRA,
        {"r": 8, "keep": 0.5, "rule": "er"},
        lambda m, n: 4 * (m + n),
    ),
    "DiffPruning": (
        hra.DiffPruning,
        GATES | {"density": 0.2},
        lambda m, n: 2 * m * n + 1,
    ),
    "DiffPruning-gates": (
        hra.DiffPruning,
        GATES | {"fixed": None, "structured": False},
        lambda m, n: 2 * m * n,
    ),
    "BitFit": (hra.BitFit, {}, lambda m, n: m),
    "Houlsby": (hra.Houlsby, {"r": 4}, lambda m, n: 2 * 4 * m + 4 + m),
    "SparseAdapter": (
        hra.SparseAdapter,
        {"r": 8, "keep": 0.5},
        lambda m, n: 8 * m + 8 + m,
    ),
    "LinAdapter": (hra.LinAdapter, {"r": 4}, lambda m, n: 2 * 4 * m + 4 + 3 * m),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda c: c.__name__)
def test_every_adapter(check, name):
    cls, hyper, trained = CASES[name]
    for case in testing.cases(cls, trained, **hyper):
        check(case)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_trains_in_float32(name):
    cls, hyper, trained = CASES[name]
    for case in testing.cases(cls, trained, **hyper):
        testing.half_precision_trains_in_float32(case)
