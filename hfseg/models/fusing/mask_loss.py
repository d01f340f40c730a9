"""The loss of Mask2Former, OneFormer and EoMT with less work: same random points, same matching, same gradient.

What the source repeats is done once: the points that all masks of an image share, the transcendental functions of the
matching costs, the padding of targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MATCHER_NOTE = "points are located once an image, costs come from one matrix product"
LOSS_NOTE = "matched masks and targets are sampled without a padded copy of all, uncertain points without sorting"
# What these functions were written against, in each family's `modeling_*` module.
LOSS_METHODS = (
    "loss_masks", "sample_points_using_uncertainty", "calculate_uncertainty", "_pad_images_to_max_in_batch",
    "_max_by_axis", "_get_predictions_permutation_indices", "_get_targets_permutation_indices",
)  # fmt: skip
LOSS_FUNCTIONS = ("sample_point", "sigmoid_cross_entropy_loss", "dice_loss")
COST_FUNCTIONS = ("sample_point", "pair_wise_sigmoid_cross_entropy_loss", "pair_wise_dice_loss")


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Samples maps bilinearly; beyond the border is zero.

    Args:
        maps: (rows, channels, height, width).
        points: (rows, points, 2), x and y as shares of width and height.

    Returns:
        (rows, channels, points).
    """
    return F.grid_sample(maps, 2.0 * points[:, :, None] - 1.0, align_corners=False)[..., 0]


@torch.no_grad()
def match(
    matcher: nn.Module,
    masks_queries_logits: Tensor,
    class_queries_logits: Tensor,
    mask_labels: Sequence[Tensor],
    class_labels: Sequence[Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Assigns queries to targets at the least cost: the forward of each family's matcher.

    Args:
        matcher: Has `num_points`, `cost_class`, `cost_mask` and `cost_dice`.
        masks_queries_logits: (batch, queries, height, width).
        class_queries_logits: (batch, queries, labels + 1).
        mask_labels: (targets, height, width) of each image.
        class_labels: (targets,) of each image.

    Returns:
        For each image, positions of queries and of their targets.
    """
    from scipy.optimize import linear_sum_assignment  # transformers, too, asks for scipy only when there is a loss

    found = []
    device = masks_queries_logits.device
    for image in range(len(masks_queries_logits)):
        truth, labels = mask_labels[image], class_labels[image]
        points = torch.rand(1, matcher.num_points, 2, device=device)
        if not len(truth):
            found.append((torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)))
            continue
        with torch.autocast(device.type, enabled=False):
            logits = masks_queries_logits[image]
            if logits.dtype in (torch.float16, torch.bfloat16):
                logits = logits.float()
            # All masks of an image are channels of one map: the points are located once.
            cost = _mask_costs(matcher, sample(logits[None], points)[0], sample(truth.to(logits)[None], points)[0])
            cost = cost - matcher.cost_class * class_queries_logits[image].softmax(-1)[:, labels]
        # An undefined cost is matched only when nothing else is left.
        worst = torch.finfo(cost.dtype).max
        cost = torch.nan_to_num(cost, nan=worst, posinf=worst, neginf=worst)
        found.append(tuple(torch.as_tensor(one, dtype=torch.int64) for one in linear_sum_assignment(cost.cpu())))
    return found


def _mask_costs(matcher: nn.Module, logits: Tensor, truth: Tensor) -> Tensor:
    """(queries, targets) from values at points: cross-entropy is sum(x - log sigmoid x) - x . y, linear in y."""
    chances = logits.sigmoid()
    inside = torch.cat([logits, chances]) @ truth.T
    product, overlap = inside.split(len(logits))
    entropy = ((logits - F.logsigmoid(logits)).sum(-1, keepdim=True) - product) / logits.shape[1]
    dice = 1 - (2 * overlap + 1) / (chances.sum(-1, keepdim=True) + truth.sum(-1) + 1)
    return matcher.cost_mask * entropy + matcher.cost_dice * dice


def mask_losses(
    criterion: nn.Module,
    masks_queries_logits: Tensor,
    mask_labels: Sequence[Tensor],
    indices: Sequence[tuple[Tensor, Tensor]],
    num_masks: Tensor,
) -> dict[str, Tensor]:
    """Computes cross-entropy and dice of the matched masks at uncertain points: `loss_masks` of each family's loss.

    Args:
        criterion: Has `num_points`, `oversample_ratio` and `importance_sample_ratio`.
        masks_queries_logits: (batch, queries, height, width).
        mask_labels: (targets, height, width) of each image.
        indices: What `match` returned.
        num_masks: What the sums are divided by.

    Returns:
        `loss_mask` and `loss_dice`.
    """
    if why_not_loss(criterion):
        plain = type(criterion).__bases__[0]
        return plain.loss_masks(criterion, masks_queries_logits, mask_labels, indices, num_masks)
    masks = masks_queries_logits
    queries = torch.cat([image * masks.shape[1] + query for image, (query, _) in enumerate(indices)])
    matched = masks.flatten(0, 1).index_select(0, queries.to(masks.device))[:, None]
    with torch.no_grad():
        points = uncertain_points(criterion, matched)
        truth = sample(_matched_targets(mask_labels, indices), points)[:, 0]
    logits = sample(matched, points)[:, 0]
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    chances = logits.sigmoid()
    dice = 1 - (2 * (chances * truth).sum(-1) + 1) / (chances.sum(-1) + truth.sum(-1) + 1)
    return {"loss_mask": entropy.mean(1).sum() / num_masks, "loss_dice": dice.sum() / num_masks}


def _matched_targets(mask_labels: Sequence[Tensor], indices: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(matched, 1, height, width), padded below and to the right with zeros where the images differ in size."""
    height, width = (max(one.shape[axis] for one in mask_labels) for axis in (-2, -1))
    dtype = mask_labels[0].dtype
    padded = [
        F.pad(one[chosen].to(dtype), (0, width - one.shape[-1], 0, height - one.shape[-2]))
        for one, (_, chosen) in zip(mask_labels, indices, strict=False)
    ]
    return torch.cat(padded)[:, None]


def uncertain_points(criterion: nn.Module, masks: Tensor) -> Tensor:
    """Draws points, most of them where a mask is nearest to undecided (Kirillov et al., PointRend, 2020).

    Args:
        criterion: Has `num_points`, `oversample_ratio` and `importance_sample_ratio`.
        masks: (masks, 1, height, width) logits.

    Returns:
        (masks, num_points, 2), in no particular order.
    """
    count = criterion.num_points
    points = torch.rand(len(masks), int(count * criterion.oversample_ratio), 2, device=masks.device)
    uncertain = int(criterion.importance_sample_ratio * count)
    certainty = sample(masks, points)[:, 0].abs()
    chosen = torch.topk(-certainty, uncertain, dim=1, sorted=False).indices
    points = points.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    if uncertain < count:
        points = torch.cat([points, torch.rand(len(masks), count - uncertain, 2, device=masks.device)], dim=1)
    return points


# What the fused classes tell the framework.


def why_not_matcher(matcher: nn.Module) -> str | None:
    """Returns None: a matcher has no children to bypass."""
    return None


def why_not_loss(criterion: nn.Module) -> str | None:
    """Returns which of the methods that are bypassed was replaced on the instance, as a reason, or None."""
    for name in LOSS_METHODS[1:]:
        if name in criterion.__dict__:
            return f"its {name} was replaced"
    return None


def example(module: nn.Module, like: Tensor | None = None, labels: int = 3) -> tuple[tuple, dict]:
    """Returns small inputs of a matcher or a loss.

    Args:
        module: The matcher or loss.
        like: Tells device and dtype.
        labels: Number of classes.

    Returns:
        No positions, and arguments by name.
    """
    like = torch.zeros(()) if like is None else like
    return (), {
        "masks_queries_logits": torch.randn(2, 4, 8, 8, device=like.device, dtype=like.dtype),
        "class_queries_logits": torch.randn(2, 4, labels + 1, device=like.device, dtype=like.dtype),
        "mask_labels": [(torch.rand(count, 16, 16, device=like.device) < 0.5).to(like.dtype) for count in (2, 1)],
        "class_labels": [torch.arange(count, device=like.device) % labels for count in (2, 1)],
    }


def loss_example(criterion: nn.Module) -> tuple[tuple, dict]:
    """Returns small inputs of a loss.

    Args:
        criterion: Has `empty_weight` and `num_labels`.

    Returns:
        As `example`.
    """
    return example(criterion, criterion.empty_weight, criterion.num_labels)


def reads(source: str, methods: Sequence[str], functions: Sequence[str]) -> tuple[str, ...]:
    """Returns names of methods and of functions of a module, as the framework wants them.

    Args:
        source: Path of the module.
        methods: Of the class.
        functions: Of the module.

    Returns:
        The names.

    Example:
        >>> reads("a.b", ["forward"], ["c"])
        ('forward', 'a.b:c')
    """
    return (*methods, *(f"{source}:{name}" for name in functions))
