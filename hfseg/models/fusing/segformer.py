"""SegFormer's head: projections composed with the fuse convolution, applied before the upsampling."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead, SegformerMLP

from hfseg.models.fusing.framework import stand_in
from hfseg.models.fusing.guards import is_convolution, why_not_plain
from hfseg.models.fusing.pyramid import project_upsampled
from hfseg.models.fusing.self_check import without_autocast


@stand_in
class FusedSegformerDecodeHead(SegformerDecodeHead):
    """The head with its linear part done at each stage's own resolution.

    The plain head projects each stage to D channels, upsamples it to a quarter of the image, and mixes the four there
    by a 1x1 convolution of 4 D to D channels. Bilinear upsampling acts on positions and the convolution on channels, so
    they commute: `fuse(cat(up(project(x)))) = sum(up(compose(fuse, project)(x)))`.
    """

    note = "each stage's projection composed with the fuse convolution, before the upsampling"
    reads = ("__init__", "forward", "transformers.models.segformer.modeling_segformer:SegformerMLP")

    def why_not(self) -> str | None:
        """Returns why the plain forward has to run, or None."""
        stages = len(self.linear_projections)
        reason = why_not_plain(self, _BYPASSED.get(stages) or _bypassed(stages))
        if reason is None and not (is_convolution(self.linear_fuse, 1) and self.linear_fuse.bias is None):
            reason = "linear_fuse is another convolution"
        return reason

    def example(self) -> tuple[tuple, dict]:
        """Returns stages of odd sizes, each half of the one before, rounded up."""
        sizes, stages = (13, 9), []
        for linear in self.linear_projections:
            weight = linear.proj.weight
            stages.append(torch.randn(2, weight.shape[1], *sizes, dtype=weight.dtype, device=weight.device))
            sizes = tuple((side + 1) // 2 for side in sizes)
        return (tuple(stages),), {}

    def forward(self, encoder_hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """Returns the logits of the plain head.

        Args:
            encoder_hidden_states: One (B, C_i, H_i, W_i) tensor per stage, the first one the largest.

        Returns:
            (B, num_labels, H_0, W_0).
        """
        # A last stage of one dimension less belongs to a head that does not reshape it.
        if self.why_not() is not None or any(stage.ndim != 4 for stage in encoder_hidden_states):
            return super().forward(encoder_hidden_states, **kwargs)
        size = encoder_hidden_states[0].shape[2:]
        folds = self._folds_batch_norm()
        # Composed in full precision also under autocast: rounding a product of weights is not rounding activations.
        with without_autocast(encoder_hidden_states[0].device.type):
            weights, bias = self._composed(folds)

        hidden_states = project_upsampled(encoder_hidden_states[::-1], weights[::-1], bias, size)
        if not folds:
            # On the CPU, torch takes batch statistics of channels-last tensors with a hundred times the rounding error.
            hidden_states = self.batch_norm(hidden_states.contiguous())
        hidden_states = self.activation(hidden_states)
        if self.training:  # dropout draws in the order of memory: as the plain head has it
            hidden_states = hidden_states.contiguous(memory_format=torch.channels_last)
        hidden_states = self.dropout(hidden_states)
        return self.classifier(hidden_states).contiguous()

    def _folds_batch_norm(self) -> bool:
        """Returns whether the batch normalisation is a fixed scale and shift per channel, and nobody watches it."""
        return not (self.batch_norm.training or torch.is_grad_enabled()) and (
            why_not_plain(self, {"batch_norm": nn.BatchNorm2d}) is None
            and self.batch_norm.running_var is not None
            and self.batch_norm.affine
        )

    def _composed(self, folds: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Returns a (D, C_i) matrix per stage and their common bias (D)."""
        projections = [linear.proj for linear in self.linear_projections]
        kept = self.linear_fuse.weight.dtype
        # Half precision is rounded to once, at the end.
        exact = kept if kept == torch.float64 else torch.float32
        # The plain head concatenates the last stage first.
        slices = self.linear_fuse.weight.to(exact).flatten(1).chunk(len(projections), dim=1)[::-1]
        if folds:
            norm = self.batch_norm
            scale = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
            slices = [part * scale[:, None] for part in slices]
        weights = [part @ projection.weight.to(exact) for part, projection in zip(slices, projections)]
        bias = weights[0].new_zeros(len(weights[0]))
        for part, projection in zip(slices, projections):
            if projection.bias is not None:
                bias = bias + part @ projection.bias.to(exact)
        if folds:
            bias = bias + norm.bias.to(exact) - norm.running_mean.to(exact) * scale
        return [weight.to(kept) for weight in weights], bias.to(kept)


def _bypassed(stages: int) -> dict[str, type]:
    names: dict[str, type] = {"linear_fuse": nn.Conv2d}
    for stage in range(stages):
        names[f"linear_projections.{stage}"] = SegformerMLP
        names[f"linear_projections.{stage}.proj"] = nn.Linear
    return names


_BYPASSED = {4: _bypassed(4)}
