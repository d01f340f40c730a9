"""The image processor of a model: where it comes from, and what it must not do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hfseg.models.configs import readable_errors
from hfseg.models.families import Family, family_of
from hfseg.models.load_report import LoadReport
from hfseg.models.networks import architecture_of
from hfseg.models.networks.framework import Pretraining
from hfseg.models.networks.smp import SmpConfig
from hfseg.models.networks.smp_checkpoints import is_smp, smp_processor


def load_processor(source: str, config, hub: dict, report: LoadReport, found: Pretraining | None = None,
                   needed: bool = False) -> Any:
    """Finds the checkpoint's own processor, or makes one with the normalisation of the backbone's weights.

    For training, it is the family's where there is none, which the report then says.

    Args:
        source: Where the checkpoint comes from.
        config: Of the network.
        hub: `revision`, `token` and `trust_remote_code`.
        report: Gets notes.
        found: Where the weights of the backbone come from, if they come alone.
        needed: Whether a checkpoint without processor is refused.

    Returns:
        The processor.

    Raises:
        UserError: When it is needed and not there.
    """
    if saved_by_smp(source, config, hub):
        processor, note = smp_processor(source, config, hub)
        report.notes.append(note)
        return processor
    processor = getattr(transformers, family_of(config).processor)()
    if found:
        processor.image_mean, processor.image_std = list(found.mean), list(found.std)
        processor.rescale_factor = found.largest / 255
        report.notes.append("images are normalised as those that these weights were trained on: mean "
                            f"{_numbers(found.mean)}, standard deviation {_numbers(found.std)}")
    elif source not in CONFIG_MAPPING and not architecture_of(source):
        with readable_errors(source):
            try:
                return AutoImageProcessor.from_pretrained(source, **hub)
            except (OSError, ValueError):
                if needed:
                    raise
        report.notes.append("it has no image processor: values are scaled and normalised as for ImageNet")
    return processor


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in dict.fromkeys(values))


def saved_by_smp(source: str, config, hub: dict) -> bool:
    """Tells whether the files of a checkpoint are segmentation-models-pytorch's own.

    Args:
        source: Where it comes from.
        config: Of the network.
        hub: `revision` and `token`.

    Returns:
        Whether.
    """
    if not isinstance(config, SmpConfig) or architecture_of(source) or source in CONFIG_MAPPING:
        return False
    return is_smp(PreTrainedConfig.get_config_dict(source, revision=hub["revision"], token=hub["token"])[0])


def _keep_all_pixels(processor) -> None:
    """Switches off what would change labels or lose pixels at the border."""
    for name in ("do_reduce_labels", "do_center_crop", "do_split_image"):
        if getattr(processor, name, None) is not None:
            setattr(processor, name, False)


def _longest(size: tuple[int, int]) -> dict[str, int]:
    """The size of images that are resized in proportion until they fit into a square."""
    return {"shortest_edge": min(size), "longest_edge": min(size)}


def configure_for_training(processor, family: Family, config, channels: int,
                           image_size: int | tuple[int, int] | None) -> None:
    """Sets the size of training samples, and statistics for every band.

    Args:
        processor: Changed in place.
        family: Of the network.
        config: Of the network.
        channels: Bands of the images.
        image_size: Shortest side, or (height, width); None leaves images as they are, unless the network needs one
            size.
    """
    _keep_all_pixels(processor)
    size = image_size or family.input_size(config)
    if size is None:
        processor.do_resize = False
    else:
        processor.do_resize = True
        if family.keeps_aspect:
            processor.size = _longest(family.input_size(config))
        elif isinstance(size, int):
            # Some processors want a limit, too; no image comes near this one.
            limit = {"longest_edge": 64 * size} if family.predicts_masks else {}
            processor.size = {"shortest_edge": size, **limit}
        else:
            processor.size = {"height": size[0], "width": size[1]}
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name, None)
        if values is not None and len(values) != channels:
            # Bands beyond the pretrained ones get the mean statistics of those that are known.
            mean = sum(values) / len(values)
            setattr(processor, name, [mean] * channels if channels < len(values)
                    else list(values) + [mean] * (channels - len(values)))


def configure_for_inference(processor: Any, family: Family, config: Any, report: LoadReport) -> None:
    """Lets a published processor resize as it was published, and where the network takes one size only.

    Args:
        processor: Changed in place.
        family: Of the network.
        config: Of the network.
        report: Gets a note.
    """
    _keep_all_pixels(processor)
    if family.keeps_aspect:
        processor.size = _longest(family.input_size(config))
    if (needed := family.input_size(config)) and not getattr(processor, "do_resize", False):
        processor.do_resize, processor.size = True, {"height": needed[0], "width": needed[1]}
        report.notes.append(f"images are resized to {needed[0]} x {needed[1]}, the only size that the network takes")
