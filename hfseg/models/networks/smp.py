"""The decoders of segmentation-models-pytorch on any of its encoders and timm's."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from torch import Tensor, nn

from hfseg.errors import UserError, one_of
from hfseg.models.networks.framework import NetworkConfig, Pretraining, SegmentationNetwork, copy_into

# The class of segmentation-models-pytorch behind each name of hfseg.
DECODERS = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "pan": "PAN",
    "linknet": "Linknet",
    "manet": "MAnet",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "dpt": "DPT",
}
_WINDOWED = ("tu-swin_", "tu-swinv2_")  # for one size, unless they are told otherwise
_PARTITIONED = ("tu-maxvit_", "tu-maxxvit", "tu-test_maxvit")  # into as many windows at any size
_LEAST = {"pan": 128}  # its pyramid halves the coarsest map three times


class SmpConfig(NetworkConfig):
    """Configuration of a decoder of segmentation-models-pytorch on an encoder.

    Attributes:
        architecture: A key of `DECODERS`.
        backbone: An encoder of segmentation-models-pytorch, or a model of timm (`tu-` in front makes sure of that).
        options: Further arguments of the decoder's class, such as `{decoder_channels: [128, 64, 32, 16, 8]}`.
        upsample: Whether the network stretches its logits to the image itself, corners aligned, as the library does.
            hfseg stretches the small ones exactly, with less work, so only checkpoints of the library need it.
    """

    model_type = "hfseg_smp"

    architecture: str = "unet"
    backbone: str = "resnet34"
    options: dict | None = None
    upsample: bool = False


class SmpForSemanticSegmentation(SegmentationNetwork):
    """A decoder of segmentation-models-pytorch; parameters have the library's own names.

    Args:
        config: What to build.

    Example:
        >>> import torch
        >>> model = SmpForSemanticSegmentation(SmpConfig(backbone="resnet18", num_labels=5)).eval()
        >>> model(torch.zeros(1, 3, 50, 70)).logits.shape
        torch.Size([1, 5, 50, 70])
    """

    config_class = SmpConfig

    def __init__(self, config: SmpConfig):
        super().__init__(config)
        network = build(config)
        self.encoder, self.decoder, self.segmentation_head = (
            network.encoder, network.decoder, network.segmentation_head)
        if not config.upsample:
            if config.architecture == "dpt":
                self.segmentation_head.upsampling_factor = 1
            else:
                self.segmentation_head[1] = nn.Identity()
        self.multiple, self.least = multiple_of(config, self.encoder), _LEAST.get(config.architecture, 32)
        self.finish()

    def network_logits(self, pixel_values: Tensor) -> tuple[Tensor, None]:
        features = self.encoder(pixel_values)
        decoded = self.decoder(*features) if self.config.architecture == "dpt" else self.decoder(features)
        return self.segmentation_head(decoded), None

    def load_backbone(self, weights: Mapping[str, Tensor] | None) -> Pretraining:
        import timm
        from segmentation_models_pytorch.encoders import encoders, get_encoder, get_preprocessing_params

        name = encoder_name(self.config.backbone)
        if name.startswith("tu-"):
            options = encoder_options(self.config)
            if weights is not None:
                options["pretrained_cfg_overlay"] = {"state_dict": dict(weights)}
            if self.config.architecture != "dpt":
                options |= {"features_only": True, "out_indices": self.encoder.model.feature_info.out_indices}
            # timm knows how its checkpoints become features; names and shapes are those of the encoder then.
            origin = timm.create_model(name[3:], pretrained=True, **options)
            copy_into(self.encoder.model, origin.state_dict())
            about = origin.pretrained_cfg
            where = f"timm's {about.get('hf_hub_id') or about.get('architecture')}"
            return Pretraining(where, tuple(about["mean"]), tuple(about["std"]))
        if weights is not None:
            # These classes drop the classifier themselves.
            self.encoder.load_state_dict(dict(weights))
            return Pretraining(name)
        kinds = encoders[name]["pretrained_settings"]
        kind = "imagenet" if "imagenet" in kinds else next(iter(kinds))
        origin = get_encoder(name, depth=self.encoder._depth, weights=kind)
        copy_into(self.encoder, origin.state_dict())
        about = get_preprocessing_params(name, kind)
        return Pretraining(f"{kinds[kind]['repo_id']} ({kind})", tuple(about["mean"]), tuple(about["std"]),
                           max(about["input_range"]), about["input_space"] == "BGR")


def build(config: SmpConfig) -> nn.Module:
    """Builds the library's own network, with random weights.

    Args:
        config: What to build.

    Returns:
        A `SegmentationModel` of segmentation-models-pytorch.

    Raises:
        UserError: When there is no such decoder or encoder.
    """
    import segmentation_models_pytorch as smp

    one_of(config.architecture, DECODERS, "architecture")
    options = {**(config.options or {}), **encoder_options(config)}
    network = getattr(smp, DECODERS[config.architecture])(
        encoder_name=encoder_name(config.backbone), encoder_weights=None, in_channels=config.num_channels,
        classes=config.num_labels, **options,
    )  # fmt: skip
    if config.architecture == "dpt":
        for level, (block, stride) in enumerate(zip(network.decoder.reassemble_blocks, network.encoder.output_strides)):
            if stride != nearest_power(stride):  # the library rounds each level's factor, and no two maps fit then
                project = block.project_to_out_channel
                network.decoder.reassemble_blocks[level] = type(block)(
                    project.in_channels, project.out_channels, block.project_to_feature_dim.out_channels,
                    nearest_power(stride) / 2 ** (level + 2))  # fmt: skip
    return network


def nearest_power(patch: int) -> int:
    """Returns the power of two that the side of a patch counts as in the decoder of DPT.

    Args:
        patch: Pixels.

    Returns:
        16 for the 14 of DINOv2.

    Example:
        >>> nearest_power(14), nearest_power(16), nearest_power(8)
        (16, 16, 8)
    """
    return 2 ** round(math.log2(patch))


def encoder_name(backbone: str) -> str:
    """Returns what segmentation-models-pytorch calls a backbone.

    Args:
        backbone: Name of one of its encoders, or of a model of timm, with or without `tu-`.

    Returns:
        The same name, with `tu-` in front of timm's.

    Raises:
        UserError: When neither library has it, with the nearest names.

    Example:
        >>> encoder_name("resnet18"), encoder_name("tf_efficientnet_lite0")
        ('resnet18', 'tu-tf_efficientnet_lite0')
    """
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if backbone in encoders:
        return backbone
    name = backbone.removeprefix("tu-")
    if timm.is_model(name):
        return f"tu-{name}"
    near = difflib.get_close_matches(backbone, dict.fromkeys([*encoders, *timm.list_models()]), n=3, cutoff=0.5)
    raise UserError(f"there is no backbone {backbone!r}",
                    f"an encoder of segmentation-models-pytorch ({', '.join(list(encoders)[:6])}, ...) or a model of "
                    "timm (timm.list_models() lists them)", f"did you mean {' or '.join(near)}?" if near else None)


def encoder_options(config: SmpConfig) -> dict:
    """Returns what lets an encoder of timm take images of any size.

    Args:
        config: With the backbone.

    Returns:
        Keyword arguments of its class.
    """
    if config.architecture == "dpt":
        # Checkpoints of the library, whose logits have the image's size, hold the classifier, too.
        return {"dynamic_img_size": True, **({} if config.upsample else {"num_classes": 0})}
    return {"strict_img_size": False} if encoder_name(config.backbone).startswith(_WINDOWED) else {}


def multiple_of(config: SmpConfig, encoder: nn.Module) -> int:
    """Returns what the sides of an image must be multiples of.

    Args:
        config: What was built.
        encoder: Its encoder.

    Returns:
        Pixels.
    """
    if config.architecture == "dpt":  # its coarsest map has half as many cells as there are patches of 16 pixels
        coarsest = 2 ** (len(encoder.out_channels) + 1)
        return encoder.output_stride * max(1, coarsest // nearest_power(encoder.output_stride))
    if encoder_name(config.backbone).startswith(_PARTITIONED):
        return encoder.model.pretrained_cfg["input_size"][-1]
    return encoder.output_stride
