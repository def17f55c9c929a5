"""The bill of fine-tuning, to the byte: derived from formulas (`cost`, `predict`), read
off autograd (`measure`), and watched as it fills up (`timeline`).

Five things are held in a step, each counted once:
  weights      every number that does not train: W0, the bias, frozen factors and bases
  trained      every number that trains (in ordinary mixed precision: both copies; of
               a method over a half-precision model: in fp32)
  gradients    one number for each trained one, held until the optimizer's step
  moments      two for each trained one (Adam: Kingma and Ba, 2014, arXiv:1412.6980)
  activations  what autograd keeps of the forward pass for the backward pass, without
               parameters and buffers
`peak` is their sum: what is held at once when a forward pass ends while the gradients
of an earlier batch wait, and the most that any step holds. A loop that clears its
gradients before each forward pass stays below it. Temporaries that live inside one
operation are not in it.

The formulas are text (`hra.law`), so that the book shows, and its calculator evaluates,
exactly what is computed here.
"""

from hra.law import Law, evaluate
from hra.memory.bill import PLAIN, PLANS, Amount, Bill, Plan, cost, law, states_law
from hra.memory.measure import amount, measure, saved
from hra.memory.predict import predict
from hra.memory.presets import PRESETS, Preset, preset_cost
from hra.memory.timeline import Timeline, timeline

__all__ = [
    "PLAIN",
    "PLANS",
    "PRESETS",
    "Amount",
    "Bill",
    "Law",
    "Plan",
    "Preset",
    "Timeline",
    "amount",
    "cost",
    "evaluate",
    "law",
    "measure",
    "predict",
    "preset_cost",
    "saved",
    "states_law",
    "timeline",
]
