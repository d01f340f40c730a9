"""The sections of a card that say what the model is and how to use it."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import modeling_auto

from hfseg.hub.card_facts import Facts
from hfseg.hub.card_text import code, counted, fenced, is_repo_id, line, listing, literal, picture, repository, title
from hfseg.metrics.scorers import MAIN_SCORE, WORDS
from hfseg.models import FAMILIES
from hfseg.models.configs import SHIPPED
from hfseg.models.networks import architecture_of
from hfseg.run_directory import SAMPLES

_SHOWN_CLASSES = 30  # named in a sentence; a table has all of them
_NAMES = {
    "segformer": "SegFormer", "upernet": "UPerNet", "dpt": "DPT", "beit": "BEiT", "data2vec-vision": "Data2Vec-Vision",
    "mobilenet_v2": "MobileNetV2", "mobilevit": "MobileViT", "mobilevitv2": "MobileViTV2",
    "mask2former": "Mask2Former", "maskformer": "MaskFormer", "oneformer": "OneFormer", "eomt": "EoMT",
    "eomt_dinov3": "EoMT-DINOv3", "detr": "DETR", "rf_detr": "RF-DETR", "hfseg_mask_rcnn": "Mask R-CNN",
    "hfseg_yolact": "YOLACT", "hfseg_segnet": "SegNet", "hfseg_hrnet": "HRNet",
}
_ARCHITECTURES = {
    "unet": "U-Net", "unetplusplus": "U-Net++", "fpn": "FPN", "pspnet": "PSPNet", "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3+", "pan": "PAN", "linknet": "LinkNet", "manet": "MA-Net", "upernet": "UPerNet",
    "segformer": "SegFormer's decoder", "dpt": "DPT", "fcn": "FCN", "lraspp": "LR-ASPP",
}  # fmt: skip
_DOES = {
    "semantic": "labels every pixel of an image with one of {}",
    "instance": "finds the objects in an image, each with its mask, of {}",
    "panoptic": "divides an image into objects, each with its mask, and areas, of {}",
}  # fmt: skip


def introduction(facts: Facts, metadata: dict[str, Any]) -> str:
    """Says what the model is, where it comes from, how good it is, and shows it.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section.
    """
    kind = network(facts.config)
    size = f" with {_millions(facts.parameters)} parameters" if facts.parameters else ""
    parts = [f"# {title(facts.name)}"]
    if facts.names:
        classes = listing([code(name) for name in facts.names], _SHOWN_CLASSES)
        does = _DOES[facts.task].format(counted(len(facts.names), "class"))
        parts.append(f"A {kind} model{size} that {does}: {classes}. {_origin(facts, metadata)}".strip())
    else:
        parts.append(f"A {kind} model{size} for images. {_origin(facts, metadata)}".strip())
    main = MAIN_SCORE[facts.task]
    if facts.results and facts.results.get(main) is not None:
        parts.append(f"On the {code(facts.protocol.get('split', 'unknown'))} split of {data_of(facts)} "
                     f"({counted(facts.results.get('num_images', 0), 'image')}) it reaches a {WORDS[main]} of "
                     f"**{facts.results[main]:.4f}**.")
    elif not facts.results:
        parts.append("No scores lie beside these weights: how good they are is not known here.")
    if facts.samples:
        errors = ", prediction and errors" if facts.task == "semantic" else " and prediction"
        parts.append(picture(f"A sample: image, truth{errors}", SAMPLES, facts.samples[0]))
    return "\n\n".join(parts)


def usage(facts: Facts, metadata: dict[str, Any]) -> str:
    """Shows how the model is used with hfseg, and with transformers alone.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section; the tests run both blocks.
    """
    name = facts.repo_id or facts.name
    photo = "photo.jpg" if facts.channels == 3 else "scene.npy"
    parts = ["## Usage"]
    if not facts.repo_id:
        parts.append(f"{code(name)} stands for the folder that holds this card, or for its repository.")
    parts.append("With hfseg, an image of any size and kind:")
    shown = "print(result.areas())" if facts.task == "semantic" else """for segment in result.segments_info:
    print(segment["label"], segment["score"], segment["bbox"])"""
    parts.append(fenced(f"""import hfseg

segmenter = hfseg.Segmenter.from_pretrained({literal(name)})
result = segmenter("{photo}")
print(result.semantic_map.shape)  # the image's own size
{shown}
result.overlay().save("overlay.png")""", "python"))
    task = _task(facts.model_type)
    if facts.task != "semantic" and task:
        parts += ["With transformers alone:", fenced(_objects_alone(facts, name, photo), "python")]
        if tile := facts.config.get("segmentation_tile"):
            parts.append(f"The model was scored in windows of {line(tile)} pixels, in which hfseg computes larger "
                         "images by itself. Transformers shows it the whole image: cut larger ones, or expect less.")
        return "\n\n".join(parts)
    if task is None:
        parts.append(f"{network(facts.config)} is not one of transformers' own networks, so it needs hfseg.")
        return "\n\n".join(parts)
    opener, opened, size, layout = ("from PIL import Image", f'Image.open("{photo}").convert("RGB")',
                                    "image.size[::-1]", "")
    if facts.channels != 3:
        opener, opened, size, layout = ("import numpy as np", f'np.load("{photo}")  # (height, width, bands)',
                                        "image.shape[:2]", ', input_data_format="channels_last"')
    imports = [opener, "import torch"] if opener.startswith("import") else ["import torch", opener]
    if facts.model_type.startswith("hfseg"):
        imports.insert(1, "import hfseg.auto  # tells transformers of this network")
        parts.append("With the Auto classes of transformers, or its `pipeline`, where hfseg is installed:")
    else:
        parts.append("With transformers alone:")
    parts.append(fenced("\n".join((*imports, f"""from transformers import AutoImageProcessor, {task}

processor = AutoImageProcessor.from_pretrained({literal(name)})
model = {task}.from_pretrained({literal(name)}).eval()

image = {opened}
inputs = processor(image, return_tensors="pt"{layout})
with torch.inference_mode():
    outputs = model(**inputs)
sizes = [{size}]
[semantic_map] = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
for class_id in semantic_map.unique().tolist():
    print(model.config.id2label[class_id], int((semantic_map == class_id).sum()), "pixels")""")),
                        "python"))
    return "\n\n".join(parts)


def _objects_alone(facts: Facts, name: str, photo: str) -> str:
    """How the model is used without hfseg where objects are told apart."""
    kind = FAMILIES[facts.model_type].auto if facts.model_type in FAMILIES else "Universal"
    if facts.model_type == "oneformer":
        lengths = ", ".join(str(facts.config.get(key, 77)) for key in ("text_encoder_context_length", "task_seq_len"))
        return f"""import torch
from PIL import Image
from transformers import AutoModelForUniversalSegmentation, AutoTokenizer, OneFormerImageProcessor, OneFormerProcessor

processor = OneFormerProcessor(OneFormerImageProcessor.from_pretrained({literal(name)}),
                               AutoTokenizer.from_pretrained({literal(name)}),
                               {lengths})
model = AutoModelForUniversalSegmentation.from_pretrained({literal(name)}).eval()
model.model.is_training = False
image = Image.open("{photo}").convert("RGB")
inputs = processor(image, task_inputs=["{facts.task}"], return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
[result] = processor.post_process_{facts.task}_segmentation(outputs, target_sizes=[image.size[::-1]])
for segment in result["segments_info"]:
    print(model.config.id2label[segment["label_id"]], segment["score"])"""
    return f"""import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelFor{kind}Segmentation

processor = AutoImageProcessor.from_pretrained({literal(name)})
model = AutoModelFor{kind}Segmentation.from_pretrained({literal(name)}).eval()
image = Image.open("{photo}").convert("RGB")
inputs = processor(image, return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
[result] = processor.post_process_{facts.task}_segmentation(outputs, target_sizes=[image.size[::-1]])
for segment in result["segments_info"]:
    print(model.config.id2label[segment["label_id"]], segment["score"])"""


def network(config: dict[str, Any]) -> str:
    """Returns what people call a network.

    Args:
        config: Of config.json.

    Returns:
        Its name, with the backbone where that is chosen by name.

    Example:
        >>> network({"model_type": "hfseg_smp", "architecture": "unet", "backbone": "resnet34"})
        'U-Net (backbone `resnet34`)'
        >>> network({"model_type": "new"})
        '`new`'
    """
    kind = str(config.get("model_type", "unknown"))
    name = _NAMES.get(kind) or _ARCHITECTURES.get(str(config.get("architecture"))) or code(kind)
    backbone = config.get("backbone")
    return f"{name} (backbone {code(backbone)})" if kind.startswith("hfseg_") and isinstance(backbone, str) else name


def intended_use(facts: Facts, metadata: dict[str, Any]) -> str:
    """Says what the model is for, and what it is not for.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section.
    """
    name = facts.repo_id or facts.name
    bands = "" if facts.channels == 3 else f" with {facts.channels} bands"
    like = f"images{bands} like those " + (f"of {data_of(facts)}" if facts.data else "it was trained on")
    return "\n\n".join((
        "## Intended use",
        f"{facts.task.capitalize()} segmentation of {like}: same kind of scene, camera, scale and classes. "
        + ("Every pixel gets one of the classes, also where none of them is there: the model has no answer for what it "
           "was not taught." if facts.task == "semantic" else
           "What it was not taught, it does not see, or takes for something else."),
        "How it does on other images is not known. Measure it on labelled images of your own before you rely on it:",
        fenced(f"hfseg evaluate {_shell(name)} --data YOUR_DATA", "bash"),
        "Without such a measurement, and a person who checks, it is no basis for decisions about anyone's safety, "
        "health or rights.",
    ))


def license_note(facts: Facts, metadata: dict[str, Any]) -> str:
    """Says which license holds, and where that is stated.

    Args:
        facts: Of the run.
        metadata: Of the card.

    Returns:
        The section.
    """
    said, base = metadata.get("license"), metadata.get("base_model")
    from_base = said is not None and said == facts.training.get("license")
    said = said if isinstance(said, list) else [said] if said else []
    if said:
        name = metadata.get("license_name")
        shown = listing([code(item) for item in said]) + (f" ({code(name)})" if name else "")
        of = f"the card of {repository(base)}" if is_repo_id(base) else "the base model's card"
        text = f"{shown}, as {of} states." if from_base else f"{shown}."
        if from_base and said == ["other"] and not metadata.get("license_link"):
            text += " Its terms are in the base model's repository."
    elif facts.random:
        text = "Nobody has stated a license for these weights."
    elif is_repo_id(base):
        text = f"The card of {repository(base)} was not found to state a license, so none is stated here."
    else:
        text = "The base model states no license that could be found, so none is stated here."
    return f"## License\n\n{text} The training data has terms of its own."


def data_of(facts: Facts) -> str:
    """Returns the data's name: a link where it is on the hub.

    Args:
        facts: Of the run.

    Returns:
        Markdown.
    """
    return repository(facts.dataset, "datasets/") if facts.dataset else code(facts.data or "unknown data")


def _origin(facts: Facts, metadata: dict[str, Any]) -> str:
    recipe, base = facts.recipe, metadata.get("base_model")
    version = (facts.protocol.get("versions") or {}).get("hfseg")
    by = f" by hfseg {line(version)}" if version else ""
    if recipe is None:
        return f"It was fine-tuned from {repository(base)}{by}." if is_repo_id(base) else ""
    on = f" on {data_of(facts)}" if facts.data else ""
    if facts.random:
        return f"It was trained from random weights{on}{by}."
    if started := facts.training.get("backbone_weights"):
        return f"Its backbone started from {line(started)}, all else from random weights. It was trained{on}{by}."
    name, revision = recipe.model.name, facts.training.get("base_revision")
    if architecture_of(name) and recipe.model.backbone:
        return f"It was trained{on} from the ImageNet weights of its backbone {code(recipe.model.backbone)}{by}."
    if is_repo_id(base) and name == base:
        start = repository(base) + (f" (commit {code(str(revision)[:12])})" if revision else "")
    elif (SHIPPED / name.removeprefix("hfseg/")).is_dir() and name.startswith("hfseg/"):
        start = f"{code(name)}, which comes with hfseg,"
    elif is_repo_id(base):
        start = f"the local checkpoint {code(name)}, which comes from {repository(base)},"
    else:
        start = code(name)
    return f"It was fine-tuned from {start}{on}{by}."


def _task(model_type: str) -> str | None:
    """The class of transformers that loads the network and gives what the processor turns into a semantic map."""
    if model_type.startswith("hfseg"):
        known = model_type in FAMILIES and FAMILIES[model_type].read is None
        return "AutoModelForSemanticSegmentation" if known else None
    for task, names in (("AutoModelForSemanticSegmentation", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES"),
                        ("AutoModelForUniversalSegmentation", "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES"),
                        ("AutoModelForInstanceSegmentation", "MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES")):
        if model_type in getattr(modeling_auto, names, {}):
            return task
    return None


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _shell(name: str) -> str:
    import shlex

    return shlex.quote(line(name))
