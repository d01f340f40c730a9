"""Small networks that predict masks, with random weights, for tests."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from hfseg.labels import LabelSchema

STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1],
          "layer_type": "basic", "out_features": STAGES}  # fmt: skip
SWIN = {"model_type": "swin", "embed_dim": 12, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 4,
        "out_features": STAGES}  # fmt: skip
DECODER = {"encoder_layers": 1, "decoder_layers": 3, "encoder_feedforward_dim": 32, "dim_feedforward": 32,
           "num_attention_heads": 4, "num_queries": 12}  # fmt: skip
POINTS = {"train_num_points": 256}
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
       "num_blocks": 2, "num_queries": 12, "num_upscale_blocks": 1, "num_register_tokens": 1}  # fmt: skip
DETECTOR = {"fpn_channels": 32, "anchor_sizes": [8, 16, 32, 48, 64]}

CONFIGS: dict[str, dict] = {
    "mask2former": {"backbone_config": RESNET, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
                    **DECODER, **POINTS},
    "maskformer": {
        "backbone_config": SWIN, "fpn_feature_size": 32, "mask_feature_size": 32,
        "decoder_config": {"model_type": "detr", "d_model": 32, "encoder_layers": 0, "decoder_layers": 2,
                           "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_attention_heads": 4,
                           "encoder_attention_heads": 4, "num_queries": 12, "dropout": 0.0},
    },
    "oneformer": {
        "backbone_config": SWIN, "conv_dim": 64, "mask_dim": 64, "hidden_dim": 64, "encoder_layers": 1,
        "decoder_layers": 3, "num_queries": 12, "encoder_feedforward_dim": 32, "dim_feedforward": 32,
        "num_attention_heads": 4, "query_dec_layers": 1, "text_encoder_width": 64, "text_encoder_num_layers": 1,
        "text_encoder_context_length": 8, "text_encoder_vocab_size": 40, "text_encoder_n_ctx": 2, "task_seq_len": 8,
        "common_stride": 4, "use_auxiliary_loss": True, "is_training": True, **POINTS,
    },
    "eomt": {**VIT, "mlp_ratio": 2, **POINTS},
    "eomt_dinov3": {**VIT, "intermediate_size": 64, **POINTS},
    "detr": {"backbone_config": RESNET, "d_model": 32, "encoder_layers": 1,
             "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 8,
             "decoder_attention_heads": 8, "num_queries": 12, "dropout": 0.0, "auxiliary_loss": True},
    "rf_detr": {
        "backbone_config": {"model_type": "rf_detr_dinov2", "hidden_size": 32, "num_hidden_layers": 4,
                            "num_attention_heads": 2, "image_size": 64, "patch_size": 8, "num_windows": 2,
                            "out_features": ["stage2", "stage4"], "num_register_tokens": 0},
        "d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_self_attention_heads": 4,
        "decoder_cross_attention_heads": 4, "num_queries": 12, "group_detr": 2, "dropout": 0.0,
    },
    "hfseg/mask-rcnn": {**DETECTOR, "representation_size": 64, "proposals": 100, "boxes_per_image": 64},
    "hfseg/yolact": {**DETECTOR, "prototypes": 8},
}  # fmt: skip

# What each needs beside `CONFIGS` to learn four images by heart: nothing dropped, and as many channels as a mask takes.
_SWIN = {**SWIN, "embed_dim": 24, "drop_path_rate": 0.0}
LARGER: dict[str, dict] = {
    "maskformer": {
        "backbone_config": _SWIN, "fpn_feature_size": 64, "mask_feature_size": 64,
        "decoder_config": {**CONFIGS["maskformer"]["decoder_config"], "d_model": 64, "decoder_ffn_dim": 64},
    },
    "oneformer": {"backbone_config": _SWIN, "dropout": 0.0},
    "eomt": {"image_size": 96},
    "eomt_dinov3": {"image_size": 96},
    "detr": {"d_model": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,  # the last layer of masks has a sixteenth
             "backbone_config": {**RESNET, "embedding_size": 32, "hidden_sizes": [32, 64, 96, 128]}},
    "rf_detr": {"d_model": 64, "decoder_ffn_dim": 64,
                "backbone_config": {**CONFIGS["rf_detr"]["backbone_config"], "hidden_size": 48, "image_size": 96}},
    "hfseg/yolact": {"anchor_sizes": [32, 40, 48, 64, 96]},
}  # fmt: skip


def write_pictures(folder: Path, side: int = 96) -> Path:
    """Four images with two large objects each, some of one class, as maps of objects and of classes."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] + 0.5
    outlines = {
        "disk": lambda u, v: np.hypot(u, v) - 1,
        "box": lambda u, v: np.maximum(abs(u) - 0.9, abs(v) - 0.75),
        "triangle": lambda u, v: np.maximum(-v - 0.6, 0.87 * abs(u) + 0.5 * v - 0.6),
    }
    names = list(outlines)
    for number, pair in enumerate((("disk", "disk"), ("box", "triangle"), ("triangle", "triangle"), ("box", "disk"))):
        image = np.tile(random.integers(30, 90, 3), (side, side, 1)).astype(float)
        objects, classes = np.zeros((2, side, side), np.uint8)
        for place, (name, centre) in enumerate(zip(pair, ((0.28, 0.3), (0.71, 0.68)), strict=True)):
            across, down = (np.array(centre) + random.uniform(-0.03, 0.03, 2)) * side
            radius = side * random.uniform(0.19, 0.24)
            inside = outlines[name]((x - across) / radius, (y - down) / radius) < 0
            image[inside] = random.integers(120, 255, 3)
            objects[inside], classes[inside] = place + 1, names.index(name) + 1
        image = (image + random.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        for kind, array in (("images", image), ("instances", objects), ("masks", classes)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{number}.png")
    schema = LabelSchema.from_names(["background", *names])
    dataclasses.replace(schema, things=tuple(names)).save(folder / "labels.json")
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words: what OneFormer is told fits into forty of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "a", "an", "the", "photo", "with", "task", "is", "semantic", "instance", "panoptic",
             "background", "disk", "box", "triangle", "ring", "star", "cable"]
    vocabulary = {word: i for i, word in enumerate(words)} | {"<end>": 39}  # the text encoder reads the largest id
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 39)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)


def checkpoint(name: str, folder: Path, config: dict | None = None) -> str:
    """What `model.name` shall be: OneFormer's, which needs a tokenizer, is a folder."""
    if name != "oneformer":
        return name
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation, OneFormerImageProcessor

    config = OneFormerConfig(**(config or CONFIGS[name]))
    config.id2label = dict(enumerate(["disk", "box", "triangle", "ring", "star", "cable"]))
    OneFormerForUniversalSegmentation(config).save_pretrained(folder)
    metadata = {str(i): {"name": label, "isthing": 1} for i, label in config.id2label.items()}
    (folder / "classes.json").write_text(json.dumps(metadata))
    OneFormerImageProcessor(repo_path=str(folder), class_info_file="classes.json").save_pretrained(folder)
    write_tokenizer(folder)
    return str(folder)
