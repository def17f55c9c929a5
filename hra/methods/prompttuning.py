"""Prompt tuning: trained embeddings before the text.

Lester et al., 2021.  arXiv:2104.08691

    x ← [P; x]        P: (n, d), in front of the embedded tokens

The prompt takes the first n positions of the context. P starts as the embeddings of n
tokens of the vocabulary (`init="vocab"`) or normal with deviation 0.02 ("random"). The
model's output has the text's positions only.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hra.adapter import WIDE
from hra.checks import check_choice
from hra.whole import WholeModel


class PromptTuning(WholeModel):
    """Trains n · d numbers. Raises TypeError or ValueError for n outside 1 … context −
    1, another `init`.
    """

    no_delta = "it adds embeddings before the text and changes no weight"
    in_sequence = True
    P: Float[Tensor, "n d"]

    def __init__(
        self,
        base: nn.Module,
        n: int = 20,
        init: str = "vocab",
        *,
        seed: int = 0,
        site: str = "",
    ) -> None:
        super().__init__(base, seed=seed, site=site)
        self.n = self.check_length(n, "prompt")
        self.init = check_choice("init", init, ("vocab", "random"))
        E: Tensor = base.get_input_embeddings().weight  # type: ignore[operator]
        g = self.generator("prompt")
        if init == "vocab":
            P = E.detach()[torch.randint(len(E), (n,), generator=g)]
        else:
            P = torch.empty(n, E.shape[1], dtype=torch.float32)
            P.normal_(0, 0.02, generator=g)
        wide = torch.promote_types(E.dtype, WIDE)
        self.P = nn.Parameter(P.to(E.device, wide, copy=True))

    def before(
        self, model: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        kwargs, rows, tokens, seen = self.inputs(model, args, kwargs)
        if seen + tokens + (0 if seen else self.n) > self.context:
            raise ValueError(
                f"a prompt of n={self.n} and a text of "
                f"{tokens + max(0, seen - self.n)} tokens do not fit in the "
                f"model's context of {self.context}: shorten one of them."
            )
        if kwargs.get("token_type_ids") is not None:
            raise ValueError(
                "token_type_ids say nothing of the prompt: leave them out."
            )
        at = kwargs["position_ids"] + self.n
        if not seen:
            x = kwargs.pop("input_ids", None)
            if x is not None:
                kwargs["inputs_embeds"] = model.get_input_embeddings()(x)
            x = kwargs["inputs_embeds"]
            P = self.P.expand(rows, -1, -1).to(x.dtype)
            kwargs["inputs_embeds"] = torch.cat([P, x], 1)
            keep = kwargs.get("logits_to_keep")
            if isinstance(keep, Tensor):  # positions in the text
                kwargs["logits_to_keep"] = torch.where(keep < 0, keep, keep + self.n)
            elif not keep:  # else the labels are those of the kept
                for name in ("labels", "shift_labels"):
                    labels = kwargs.get(name)
                    if labels is not None:
                        none = labels.new_full((rows, self.n), -100)
                        kwargs[name] = torch.cat([none, labels], 1)
            before = torch.arange(self.n, device=at.device).expand(len(at), -1)
            at = torch.cat([before, at], 1)
        kwargs["position_ids"] = at
        return (), kwargs

    def after(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> Any:
        output = super().after(model, args, kwargs, output)
        x = kwargs.get("inputs_embeds")
        if x is None or x.shape[1] != kwargs["attention_mask"].shape[-1]:
            return output  # the prompt is in the cache
        keep, text = kwargs.get("logits_to_keep"), x.shape[1] - self.n
        if not isinstance(keep, Tensor):
            output.logits = output.logits[:, -text:]
        for name, dim in (("hidden_states", 1), ("attentions", 2)):
            of_layers = getattr(output, name, None)
            if of_layers is not None:
                cut = (
                    t if t is None else t.narrow(dim, self.n, text) for t in of_layers
                )
                setattr(output, name, tuple(cut))
        return output
