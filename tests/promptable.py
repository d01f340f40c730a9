"""Tiny promptable models with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

KINDS = ("sam", "sam_hq", "sam2", "edgetam", "sam3_tracker")


def tiny(kind: str, folder: Path) -> str:
    """Writes a tiny model of a kind, with its processor.

    Args:
        kind: One of `KINDS`.
        folder: Where to.

    Returns:
        The folder.
    """
    import transformers as t

    def configs(vision, prompt, decoder):
        return {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}

    torch.manual_seed(0)
    if kind in ("sam", "sam_hq"):
        name = "Sam" if kind == "sam" else "SamHQ"
        more = {} if kind == "sam" else {"vit_dim": 32}
        parts = {part: getattr(t, f"{name}{part}") for part in (
            "VisionConfig", "PromptEncoderConfig", "MaskDecoderConfig", "Config", "Model", "Processor")}
        vision = parts["VisionConfig"](hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=4,
                                   image_size=64, patch_size=16, mlp_dim=64, global_attn_indexes=[1], window_size=2,
                                   num_pos_feats=16)
        prompt = parts["PromptEncoderConfig"](hidden_size=32, image_size=64, patch_size=16)
        decoder = parts["MaskDecoderConfig"](hidden_size=32, mlp_dim=64, num_hidden_layers=2, num_attention_heads=4,
                                             iou_head_hidden_dim=32, **more)
        model = parts["Model"](parts["Config"](**configs(vision, prompt, decoder)))
        images = t.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
        processor = parts["Processor"](images)
    elif kind == "sam3_tracker":
        backbone = t.Sam3ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                   image_size=56, pretrain_image_size=56, patch_size=14, window_size=2,
                                   global_attn_indexes=[1])
        vision = t.Sam3VisionConfig(backbone_config=backbone, fpn_hidden_size=32,
                                    backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]])
        prompt = t.Sam3TrackerPromptEncoderConfig(image_size=56, patch_size=14, hidden_size=32)
        decoder = t.Sam3TrackerMaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=4,
                                                 iou_head_hidden_dim=32)
        model = t.Sam3TrackerModel(t.Sam3TrackerConfig(**configs(vision, prompt, decoder)))
        processor = t.Sam3TrackerProcessor(t.Sam3ImageProcessor(size={"height": 56, "width": 56},
                                                                mask_size={"height": 16, "width": 16}))
    else:
        parts = {"image_size": 64, "hidden_size": 32}
        if kind == "sam2":
            backbone = t.Sam2HieraDetConfig(hidden_size=8, num_attention_heads=1, image_size=[64, 64],
                                            blocks_per_stage=[1, 2, 2, 2], embed_dim_per_stage=[8, 16, 32, 64],
                                            num_attention_heads_per_stage=[1, 1, 2, 2],
                                            window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[2],
                                            window_positional_embedding_background_size=[4, 4])
            vision = t.Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8],
                                        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=32)
            prompt = t.Sam2PromptEncoderConfig(**parts)
            decoder = t.Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32)
            model = t.Sam2Model(t.Sam2Config(**configs(vision, prompt, decoder)))
        else:
            backbone = t.AutoConfig.for_model("timm_wrapper", architecture="repvit_m1.dist_in1k", model_args={
                "in_chans": 3, "features_only": True, "out_indices": (0, 1, 2, 3)})
            vision = t.EdgeTamVisionConfig(backbone_config=backbone, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
                                           fpn_hidden_size=32)
            prompt = t.EdgeTamPromptEncoderConfig(**parts)
            decoder = t.EdgeTamMaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=4,
                                                 iou_head_hidden_dim=32)
            model = t.EdgeTamModel(t.EdgeTamConfig(**configs(vision, prompt, decoder)))
        processor = t.Sam2Processor(t.Sam2ImageProcessor(size={"height": 64, "width": 64},
                                                         mask_size={"height": 16, "width": 16}))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
