"""The table of model families: what the rest of hfseg has to know of each, so that nobody tests for a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hfseg.errors import UserError, one_of


def _any_size(config) -> tuple[int, int] | None:
    return None


def _fixed_size(config) -> tuple[int, int] | None:
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


@dataclass(frozen=True)
class Family:
    """What the loop, the evaluator and the segmenter ask of a per-pixel model.

    Attributes:
        model_type: `config.model_type` of transformers.
        head: Prefixes of the parameters that are not the pretrained backbone.
        classifiers: Modules whose outputs are the classes, replaced when the labels change.
        input_size: From the configuration, the (height, width) that the network needs, or None for any.
        unused_parameters: Whether some parameters never get a gradient, which data parallel training must know.
    """

    model_type: str
    head: tuple[str, ...]
    classifiers: tuple[str, ...]
    input_size: Callable = _any_size
    unused_parameters: bool = False

    def is_head(self, parameter_name: str) -> bool:
        """Returns whether the parameter belongs to the head.

        Args:
            parameter_name: A name of `named_parameters()`, such as `decode_head.classifier.weight`.

        Returns:
            False for a parameter of the backbone.
        """
        return parameter_name.startswith(tuple(f"{prefix}." for prefix in self.head))


_DECODE = ("decode_head", "auxiliary_head")
_DECODE_CLASSIFIERS = ("decode_head.classifier", "auxiliary_head.classifier")
_DPT_HEAD = ("neck", "head", "auxiliary_head")
_PYRAMID = ("pooler", "fpn1", "fpn2", "fpn3", "fpn4")
_SMP_CLASSIFIERS = ("segmentation_head.0", "segmentation_head.head.4")
_TORCHVISION_CLASSIFIERS = (
    "classifier.4", "classifier.low_classifier", "classifier.high_classifier", "auxiliary_head.head.4",
)  # fmt: skip
_SEGMENTATION = (("segmentation_head",), ("segmentation_head.classifier.convolution",))

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("segformer", ("decode_head",), ("decode_head.classifier",)),
        Family("upernet", _DECODE, _DECODE_CLASSIFIERS),
        Family("dpt", _DPT_HEAD, ("head.head.4", "auxiliary_head.head.4"), _fixed_size, unused_parameters=True),
        Family("beit", _DECODE + _PYRAMID, _DECODE_CLASSIFIERS, _fixed_size, unused_parameters=True),
        Family("data2vec-vision", _DECODE + _PYRAMID, _DECODE_CLASSIFIERS, _fixed_size, unused_parameters=True),
        Family("mobilenet_v2", *_SEGMENTATION, unused_parameters=True),
        Family("mobilevit", *_SEGMENTATION),
        Family("mobilevitv2", *_SEGMENTATION),
        # Some decoders read no more than the first stages.
        Family("hfseg_smp", ("decoder", "segmentation_head"), _SMP_CLASSIFIERS, unused_parameters=True),
        Family("hfseg_torchvision", ("classifier", "auxiliary_head"), _TORCHVISION_CLASSIFIERS),
        Family("hfseg_segnet", ("decoder", "classifier"), ("classifier",)),
        Family("hfseg_hrnet", ("head", "classifier"), ("classifier",)),
    )
}


def family_of(config) -> Family:
    """Returns the family of a model by its configuration.

    Args:
        config: A transformers configuration.

    Returns:
        The record of its family.

    Raises:
        UserError: When the model type does not segment by pixel, or is not known.

    Example:
        >>> from transformers import SegformerConfig
        >>> family_of(SegformerConfig()).head
        ('decode_head',)
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    try:
        one_of(config.model_type, FAMILIES, "model type for semantic segmentation")
    except UserError as error:
        error.fix = error.fix or "choose a checkpoint of one of these families, such as nvidia/mit-b0"
        raise error from None
