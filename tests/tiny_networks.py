"""Tiny random networks of every family that gives per-pixel logits, and a segmenter of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessor,
    DPTConfig,
    DPTForSemanticSegmentation,
    DPTImageProcessor,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2ImageProcessor,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTImageProcessor,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hfseg.segmenter import Segmenter

LABELS = {"id2label": {0: "sky", 1: "cat", 2: "rug"}, "label2id": {"sky": 0, "cat": 1, "rug": 2}}
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}


def segformer(channels=3, **processor):
    config = SegformerConfig(
        num_channels=channels,
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **LABELS,
    )
    options = {"size": {"height": 64, "width": 64}} | processor
    return SegformerForSemanticSegmentation(config), SegformerImageProcessor(**options)


def upernet():
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1] * 4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=16, **LABELS
    )
    return UperNetForSemanticSegmentation(config), SegformerImageProcessor(size={"height": 64, "width": 64})


def dpt():
    config = DPTConfig(
        **VIT,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        **LABELS,
    )
    return DPTForSemanticSegmentation(config), DPTImageProcessor(size={"height": 64, "width": 64})


def beit():
    config = BeitConfig(**VIT, image_size=64, patch_size=16, out_indices=[1, 2, 3, 4], auxiliary_channels=8, **LABELS)
    processor = BeitImageProcessor(
        size={"height": 64, "width": 64},
        crop_size={"height": 32, "width": 32},
        do_center_crop=True,
        do_reduce_labels=True,
    )
    return BeitForSemanticSegmentation(config), processor


def mobilenet():
    config = MobileNetV2Config(depth_multiplier=0.25, image_size=64, **LABELS)
    processor = MobileNetV2ImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 32, "width": 32})
    return MobileNetV2ForSemanticSegmentation(config), processor


def mobilevit():
    config = MobileViTConfig(hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8] * 6 + [16], aspp_out_channels=8, **LABELS)
    processor = MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 32, "width": 32})
    return MobileViTForSemanticSegmentation(config), processor


def a_picture(height=50, width=70, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module", name="segmenter")
def segmenter_fixture():
    torch.manual_seed(0)
    return Segmenter(*segformer())
