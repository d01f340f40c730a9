"""Swin's feed-forward without its largest stored tensor: GELU is computed again in the pass back, not kept.

The plain layer keeps the input of GELU and its output, both four times as wide as the layer, in every block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation
from transformers.models.swin.modeling_swin import SwinMLP

from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import ordinary, why_not_plain


@stand_in
class FusedSwinMLP(SwinMLP):
    """Keeps the input of GELU for the pass back, and not its output."""

    note = "GELU's output is not kept for the pass back, but computed again"
    reads = ("forward",)

    def why_not(self) -> str | None:
        reason = why_not_plain(self, {"activation_fn": GELUActivation, "fc2": nn.Linear})
        if reason is None and self.activation_fn.act is not F.gelu:
            reason = "activation_fn is another GELU"
        return reason

    def example(self) -> tuple[tuple, dict]:
        weight = self.fc1.weight
        return (torch.randn(2, 3, weight.shape[1], device=weight.device, dtype=weight.dtype),), {}

    def forward(self, hidden_states: Tensor) -> Tensor:
        plain = not torch.is_grad_enabled() or torch.is_autocast_enabled(hidden_states.device.type)
        if plain or not ordinary(hidden_states) or self.why_not():
            return super().forward(hidden_states)
        return _LinearOfGelu.apply(self.fc1(hidden_states), self.fc2.weight, self.fc2.bias)


class _LinearOfGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return F.linear(F.gelu(states), weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        to_states = to_weight = to_bias = None
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[1]:
            to_weight = rows.T @ F.gelu(states).reshape(-1, states.shape[-1])
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        if ctx.needs_input_grad[0]:
            to_states = torch.ops.aten.gelu_backward(gradient @ weight, states)
        return to_states, to_weight, to_bias
