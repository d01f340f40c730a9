"""The table of model families: what the rest of hfseg has to know of each, so that nobody tests for a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hfseg.errors import UserError, one_of
from hfseg.models.candidates import (
    ask_task,
    feed_boxes,
    feed_masks,
    feed_text,
    read_detections,
    read_detr,
    read_queries,
    read_rf_detr,
)

TASKS = ("semantic", "instance", "panoptic")


def _any_size(config) -> tuple[int, int] | None:
    return None


def _fixed_size(config) -> tuple[int, int] | None:
    size = config.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _no_step(config) -> int:
    return 1


def _halved(config) -> int:
    return 32  # its prototypes lie on all that it computes: what it would pad by itself, nobody would know of


def _windows(config) -> int:
    return config.backbone_config.patch_size * config.backbone_config.num_windows


@dataclass(frozen=True)
class Family:
    """What the loop, the evaluator and the segmenter ask of a model.

    A per-pixel model gives logits of classes and learns from maps by hfseg's losses. All others propose masks, learn
    from masks by losses of their own, and say below how they want and give them.

    Attributes:
        model_type: `config.model_type` of transformers.
        head: Prefixes of the parameters that are not the pretrained backbone.
        classifiers: Modules whose outputs are the classes, replaced when the labels change.
        input_size: From the configuration, the (height, width) that the network needs, or None for any.
        unused_parameters: Whether some parameters never get a gradient, which data parallel training must know.
        backbone: Prefixes of the backbone's parameters, for families in which all else is the head.
        tasks: What it can learn.
        auto: Which of transformers' Auto classes loads it: AutoModelFor...Segmentation.
        read: From what the model returned to `Candidates`; None for a per-pixel model.
        feed: From (model, `Targets`) to what the model's `forward` takes in training.
        ask: From (model, task, images) to what else `forward` takes when nothing is learnt.
        step: From the configuration, the pixels that sides have to be a multiple of.
        scored_by_mask: Whether the score of an object is also that of its mask: the mean probability inside it.
        losses_apart: Whether it has losses in training mode alone, and then no predictions.
        keeps_aspect: Whether images are resized in proportion and padded to the one size that the network needs.
        settings: Fields of the configuration by their names in the recipe's `loss` section.
        processor: transformers' image processor for it, where the checkpoint brings none.
    """

    model_type: str
    head: tuple[str, ...]
    classifiers: tuple[str, ...]
    input_size: Callable = _any_size
    unused_parameters: bool = False
    backbone: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("semantic",)
    auto: str = "Semantic"
    read: Callable | None = None
    feed: Callable | None = None
    ask: Callable | None = None
    step: Callable = _no_step
    scored_by_mask: bool = False
    losses_apart: bool = False
    keeps_aspect: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    processor: str = "SegformerImageProcessor"

    @property
    def predicts_masks(self) -> bool:
        """Whether it proposes masks, rather than logits per pixel."""
        return self.read is not None

    def is_head(self, parameter_name: str) -> bool:
        """Returns whether the parameter belongs to the head.

        Args:
            parameter_name: A name of `named_parameters()`, such as `decode_head.classifier.weight`.

        Returns:
            False for a parameter of the backbone.
        """
        if self.backbone:
            return not parameter_name.startswith(tuple(f"{prefix}." for prefix in self.backbone))
        return parameter_name.startswith(tuple(f"{prefix}." for prefix in self.head))


def _masks(model_type: str, backbone: tuple[str, ...], classifier: str, **more) -> Family:
    """A family of transformers whose queries propose masks."""
    settings = {"no_object_weight": "no_object_weight", "num_points": "train_num_points"}
    return Family(model_type, (), (classifier,), **{
        "backbone": backbone, "tasks": TASKS, "auto": "Universal", "read": read_queries, "feed": feed_masks,
        "scored_by_mask": True, "settings": settings, "unused_parameters": True, **more,
    })  # fmt: skip


def _detector(model_type: str, backbone: tuple[str, ...], *classifiers: str, **more) -> Family:
    """A family that finds objects and their masks."""
    return Family(model_type, (), classifiers, **{
        "backbone": backbone, "tasks": ("instance",), "auto": "Instance", "read": read_detections, "feed": feed_boxes,
        "unused_parameters": True, **more,
    })  # fmt: skip


_DECODE = ("decode_head", "auxiliary_head")
_DECODE_CLASSIFIERS = ("decode_head.classifier", "auxiliary_head.classifier")
_DPT_HEAD = ("neck", "head", "auxiliary_head")
_PYRAMID = ("pooler", "fpn1", "fpn2", "fpn3", "fpn4")
_SMP_CLASSIFIERS = ("segmentation_head.0", "segmentation_head.head.4")
_TORCHVISION_CLASSIFIERS = (
    "classifier.4", "classifier.low_classifier", "classifier.high_classifier", "auxiliary_head.head.4",
)  # fmt: skip
_ENCODER = ("model.pixel_level_module.encoder",)
_VIT = ("embeddings", "layers", "layernorm", "norm", "rope_embeddings")
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
        _masks("mask2former", _ENCODER, "class_predictor", processor="Mask2FormerImageProcessor"),
        _masks("maskformer", _ENCODER, "class_predictor", processor="MaskFormerImageProcessor",
               settings={"no_object_weight": "no_object_weight"}),
        _masks("oneformer", _ENCODER, "model.transformer_module.decoder.class_embed", feed=feed_text, ask=ask_task,
               processor="OneFormerImageProcessor"),
        _masks("eomt", _VIT, "class_predictor", input_size=_fixed_size, keeps_aspect=True,
               processor="EomtImageProcessor"),
        _masks("eomt_dinov3", _VIT, "class_predictor", input_size=_fixed_size, keeps_aspect=True,
               processor="EomtImageProcessor"),
        _masks("detr", ("detr.model.backbone",), "detr.class_labels_classifier", read=read_detr, feed=feed_boxes,
               settings={"no_object_weight": "eos_coefficient"}, processor="DetrImageProcessor"),
        _detector("rf_detr", ("model.model.backbone",), "model.class_embed", "model.model.enc_out_class_embed",
                  read=read_rf_detr, step=_windows, processor="RfDetrImageProcessor"),
        _detector("hfseg_mask_rcnn", ("backbone.body",), "roi_heads.box_predictor", "roi_heads.mask_predictor",
                  losses_apart=True),
        _detector("hfseg_yolact", ("backbone",), "head.classes", step=_halved, losses_apart=True),
    )
}


def family_of(config) -> Family:
    """Returns the family of a model by its configuration.

    Args:
        config: A transformers configuration.

    Returns:
        The record of its family.

    Raises:
        UserError: When the model type does not segment, or is not known.

    Example:
        >>> from transformers import SegformerConfig
        >>> family_of(SegformerConfig()).head
        ('decode_head',)
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    try:
        one_of(config.model_type, FAMILIES, "model type for segmentation")
    except UserError as error:
        error.fix = error.fix or "choose a checkpoint of one of these families, such as nvidia/mit-b0"
        raise error from None


def tasks_of(config) -> tuple[str, ...]:
    """Returns what can be asked of a checkpoint, what it was trained for first.

    A panoptic one knows objects and areas, so that the other tasks follow from it; one that was trained for objects
    knows nothing between them, and one for areas does not tell objects apart. Where nothing is said, not even by the
    name, it may be all that its network can do, and the last of that comes first.

    Args:
        config: Its configuration.

    Returns:
        Tasks.

    Example:
        >>> from transformers import Mask2FormerConfig
        >>> tasks_of(Mask2FormerConfig(segmentation_task="instance")), tasks_of(Mask2FormerConfig())
        (('instance',), ('panoptic', 'semantic', 'instance'))
    """
    family = FAMILIES.get(getattr(config, "model_type", None))
    can = family.tasks if family else TASKS[:1]
    name = str(getattr(config, "_name_or_path", "")).rpartition("/")[2].lower()
    said = getattr(config, "segmentation_task", None) or next((task for task in can if task in name), None)
    if said not in can:
        said = None
    if said in ("semantic", "instance") and not family.ask:
        return (said,)
    first = said or can[-1]
    return (first, *(task for task in can if task != first))
