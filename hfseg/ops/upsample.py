"""From logits at the network's resolution to labels at the image's, without the full-size logits in between.

On the CPU by cells of the coarse grid (`cells.py`); elsewhere, and where a logit is infinite or NaN, a few rows of
full-size logits at a time.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hfseg.ops.strips import source_positions, strips_of


def upsample_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample logits bilinearly, pixel centres aligned as in every `interpolate(align_corners=False)`.

    Args:
        logits: (C, h, w) or (B, C, h, w), any float type.
        size: (height, width) wanted.

    Returns:
        (C, H, W) or (B, C, H, W) float32.
    """
    batched = _batched(logits, size).float()
    full = F.interpolate(batched, size=tuple(size), mode="bilinear", align_corners=False)
    return full if logits.ndim == 4 else full[0]


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], *, return_confidence: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Give every pixel the class with the largest bilinearly upsampled logit.

    Equal to `interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)`, up to ties within
    rounding, but the upsampled logits never exist: memory beyond the result does not depend on `size`. A tie goes to
    the smallest class id. As in torch, NaN counts as the largest value: a pixel that a NaN logit reaches gets the
    first class that is NaN there, and NaN as its confidence.

    Args:
        logits: (C, h, w) or (B, C, h, w), any float type, contiguous or not, larger or smaller than `size`. float16
            and bfloat16 are computed in float32.
        size: (height, width) wanted.
        return_confidence: Also return how sure the winner is, which costs an exponential per class and pixel.

    Returns:
        (H, W) or (B, H, W) class ids: uint8 up to 256 classes, int16 up to 32,768, else int32. With
        `return_confidence` a tuple of these and the softmax probability of the winner, same shape, float32.

    Raises:
        ValueError: When logits or size have the wrong shape.

    Example:
        >>> upsample_argmax(torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]]), (2, 4)).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    batched = _batched(logits, size)
    batch, classes, height, width = *batched.shape[:2], *size
    labels = torch.empty((batch, height, width), dtype=_label_type(classes), device=logits.device)
    confidence = torch.empty((batch, height, width), device=logits.device) if return_confidence else None
    if return_confidence and batched.dtype == torch.float64:
        _fill_by_strips(batched, labels, confidence)
    elif _has_cells(batched):
        from hfseg.ops import cells

        kernel = cells.label_rows if confidence is None else cells.confidence_rows
        outputs = [labels] if confidence is None else [labels, confidence]
        _run_cells(kernel, batched, size, [[output[image].numpy() for output in outputs] for image in range(batch)])
    else:
        _fill_by_strips(batched, labels, confidence)
    if logits.ndim == 3:
        labels, confidence = labels[0], None if confidence is None else confidence[0]
    return labels if confidence is None else (labels, confidence)


def upsample_confusion(
    logits: Tensor, reference: np.ndarray | Tensor, num_labels: int | None = None, ignore_index: int | None = 255
) -> np.ndarray:
    """Count every pair of a true class and the class of the largest upsampled logit, without writing the map.

    Equal to `confusion_counts(reference, upsample_argmax(logits, reference.shape), ...)`.

    Args:
        logits: (C, h, w), any float type.
        reference: (H, W) true class ids, an array or a tensor of integers.
        num_labels: Number of classes n; C if None.
        ignore_index: The reference value to leave out; None leaves nothing out.

    Returns:
        (n, n) int64. Rows are the reference, columns the prediction.

    Raises:
        UserError: When a counted pixel has a value outside 0 to n - 1; lists the values.
        ValueError: When logits or reference have the wrong shape.

    Example:
        >>> logits = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]])
        >>> upsample_confusion(logits, np.array([[0, 255, 0, 1]])).tolist()
        [[1, 1], [0, 1]]
    """
    from hfseg.ops.confusion import confusion_counts

    if logits.ndim != 3 or reference.ndim != 2:
        raise ValueError(f"logits are {tuple(logits.shape)} and the reference is {tuple(reference.shape)}, "
                         "not (C, h, w) and (H, W)")
    size = tuple(reference.shape)
    batched = _batched(logits, size)
    n = batched.shape[1] if num_labels is None else num_labels
    reference = reference.cpu().numpy() if isinstance(reference, Tensor) else np.asarray(reference)
    if n == batched.shape[1] and reference.dtype.kind in "iu" and _has_cells(batched):
        from hfseg.ops import cells
        from hfseg.ops.counting import NO_VALUE

        ignore = NO_VALUE if ignore_index is None else ignore_index
        counts, lock = np.zeros((n, n), np.int64), threading.Lock()

        def count(*arguments) -> int:
            table = np.zeros((n, n), np.int64)
            outside = cells.count_rows(*arguments, table)
            with lock:
                np.add(counts, table, out=counts)
            return outside

        reference = np.ascontiguousarray(reference, reference.dtype.newbyteorder("="))
        if not sum(_run_cells(count, batched, size, [[reference, ignore]])):
            return counts
    # A device without compiled code, or values to complain about.
    return confusion_counts(reference, upsample_argmax(logits, size).cpu().numpy(), n, ignore_index)


def upsample_threshold(logits: Tensor, size: tuple[int, int], threshold: float = 0.0) -> Tensor:
    """Find where bilinearly upsampled logits of binary masks are above a threshold.

    Equal to `interpolate(logits, size, mode="bilinear", align_corners=False) > threshold`, up to rounding. A cell of
    the coarse grid whose corners agree is decided by them. Where NaN reaches, the answer is False.

    Args:
        logits: (N, h, w) or (B, N, h, w), one mask each, any float type.
        size: (height, width) wanted.
        threshold: In logits; 0 is a sigmoid of one half.

    Returns:
        (N, H, W) or (B, N, H, W) bool.

    Raises:
        ValueError: When logits or size have the wrong shape.

    Example:
        >>> upsample_threshold(torch.tensor([[[4.0, -4.0]]]), (1, 4)).tolist()
        [[[True, True, False, False]]]
    """
    batched = _batched(logits, size)
    flat = batched.flatten(0, 1)
    mask = torch.empty((len(flat), *size), dtype=torch.bool, device=logits.device)
    if _has_cells(flat[:, None]):
        from hfseg.ops import cells

        limit = np.float64(threshold) if flat.dtype == torch.float64 else np.float32(threshold)
        _run_cells(lambda plane, *rest: cells.threshold_rows(plane[0], *rest), flat[:, None], size,
                   [[limit, part.numpy()] for part in mask])
    else:
        for part, plane in zip(mask, flat, strict=True):  # one at a time: the upsampled logits may be large
            plane = plane if plane.dtype == torch.float64 else plane.float()
            full = F.interpolate(plane[None, None], size=tuple(size), mode="bilinear", align_corners=False)
            part.copy_(full[0, 0] > threshold)
    return mask.view(*batched.shape[:2], *size) if logits.ndim == 4 else mask


def _has_cells(batched: Tensor) -> bool:
    """Whether the compiled code can do it: on the CPU, with finite numbers, whose sum then is finite as a rule."""
    return batched.device.type == "cpu" and bool(batched.detach().sum(dtype=torch.float64).isfinite())


def _run_cells(kernel, batched: Tensor, size: tuple[int, int], last_arguments: list[list]) -> list:
    """Runs a kernel of `cells.py` over the output rows of each image."""
    from hfseg.ops.compiled import share_out

    images = batched.detach()
    images = (images if images.dtype == torch.float64 else images.float()).contiguous().numpy()
    (_, classes, h, w), (height, width) = images.shape, size
    rows, row_shares = source_positions(h, height, images.dtype)
    columns, column_shares = source_positions(w, width, images.dtype)
    column_starts = np.searchsorted(columns, np.arange(w + 1))
    grid = rows, row_shares, column_starts, column_shares

    def call(image: int, first: int, last: int):
        return kernel(images[image], *grid, first, last, *last_arguments[image])

    work = len(images) * (classes * min(h, height) * w + height * width)
    return share_out(call, height, work, batch=len(images))


def _fill_by_strips(batched: Tensor, labels: Tensor, confidence: Tensor | None) -> None:
    """Fills labels (B, H, W), and confidence if there is one, some rows of upsampled logits at a time."""
    if batched.dtype != torch.float64:
        batched = batched.float()
    classes, rows = batched.shape[1:3]
    for image, coarse in enumerate(batched.detach()):
        finite = bool(coarse.isfinite().all())
        for strip in strips_of(classes, rows, labels.shape[1:], coarse):
            values = strip.upsampled(coarse) if finite else strip.upsampled_with_infinities(coarse)
            best, winner = values.max(dim=1)
            labels[image, strip.rows] = winner.to(labels.dtype)
            if confidence is not None:
                confidence[image, strip.rows] = 1 / (values - best[:, None]).exp_().sum(dim=1)


def _batched(logits: Tensor, size: tuple[int, int]) -> Tensor:
    if logits.ndim not in (3, 4) or 0 in logits.shape[-3:] or not logits.is_floating_point():
        raise ValueError(f"logits are {tuple(logits.shape)} {logits.dtype}, not (C, h, w) or (B, C, h, w) floats")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}, not (height, width) of at least 1")
    return logits if logits.ndim == 4 else logits[None]


def _label_type(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.int16 if classes <= 32768 else torch.int32
