"""What the libraries above huggingface_hub do with a hub, in one process; test_hub_clients.py runs it.

Usage: python hub_clients.py FOLDER, with HF_ENDPOINT and HF_TOKEN of a hub whose user `me` this is.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(sys.argv[1])
PHOTO = FOLDER / "photo.png"
TINY = {"hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1],
        "decoder_hidden_size": 16, "num_labels": 3}  # fmt: skip


def transformers_pushes_and_loads() -> None:
    import torch
    from transformers import (
        AutoImageProcessor,
        AutoModelForSemanticSegmentation,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
        pipeline,
    )

    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY)).eval()
    model.push_to_hub("me/tiny", private=True, commit_message="by transformers")
    SegformerImageProcessor(do_reduce_labels=False).push_to_hub("me/tiny")
    again = AutoModelForSemanticSegmentation.from_pretrained("me/tiny")
    processor = AutoImageProcessor.from_pretrained("me/tiny")
    pixels = processor(Image.open(PHOTO), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        assert torch.allclose(again(pixels).logits, model(pixels).logits, atol=1e-6)
    found = pipeline("image-segmentation", model="me/tiny")(str(PHOTO))
    assert {segment["label"] for segment in found} <= {"LABEL_0", "LABEL_1", "LABEL_2"} and found
    sharded = FOLDER / "sharded"
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    model.push_to_hub("me/sharded", max_shard_size="20KB")
    assert AutoModelForSemanticSegmentation.from_pretrained("me/sharded").num_parameters() == model.num_parameters()


def hfseg_loads_what_transformers_pushed() -> None:
    import hfseg

    for name in ("me/tiny", "me/sharded"):
        if name == "me/sharded":
            from transformers import SegformerImageProcessor

            SegformerImageProcessor(do_reduce_labels=False).push_to_hub(name)
        assert hfseg.Segmenter.from_pretrained(name)(PHOTO).semantic_map.shape == (40, 56)


def datasets_pushes_loads_and_streams() -> None:
    from datasets import ClassLabel, Dataset, Features, load_dataset
    from datasets import Image as ImageFeature

    rows = {"image": [str(PHOTO)] * 5, "label": [0, 1, 0, 1, 0]}
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict(rows, features=features).push_to_hub("me/photos", split="train")
    Dataset.from_dict(rows, features=features).push_to_hub("me/photos", split="validation")
    data = load_dataset("me/photos")
    assert {name: len(part) for name, part in data.items()} == {"train": 5, "validation": 5}
    assert data["train"].features["label"].names == ["a", "b"]
    streamed = list(load_dataset("me/photos", split="train", streaming=True))
    assert len(streamed) == 5
    assert np.array_equal(np.asarray(streamed[0]["image"]), np.asarray(Image.open(PHOTO)))


def evaluate_loads_hfsegs_metric_from_a_space() -> None:
    import evaluate
    from huggingface_hub import HfApi

    import hfseg.metrics.mean_iou

    api = HfApi()
    api.create_repo("me/mean_iou", repo_type="space", space_sdk="gradio")
    api.upload_file(path_or_fileobj=hfseg.metrics.mean_iou.__file__, path_in_repo="mean_iou.py",
                    repo_id="me/mean_iou", repo_type="space")  # fmt: skip
    metric = evaluate.load("me/mean_iou", num_labels=2, ignore_index=255)
    metric.add_batch(predictions=[np.array([[0, 1]])], references=[np.array([[0, 0]])])
    assert metric.compute()["overall_accuracy"] == 0.5


def cards_are_pushed_and_read() -> None:
    from huggingface_hub import ModelCard, metadata_update

    ModelCard("---\nlicense: apache-2.0\n---\n# A tiny one\n").push_to_hub("me/tiny")
    metadata_update("me/tiny", {"tags": ["segmentation"]})
    assert ModelCard.load("me/tiny").data.to_dict() == {"license": "apache-2.0", "tags": ["segmentation"]}


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(PHOTO)
    for step in (transformers_pushes_and_loads, hfseg_loads_what_transformers_pushed,
                 datasets_pushes_loads_and_streams, evaluate_loads_hfsegs_metric_from_a_space,
                 cards_are_pushed_and_read):  # fmt: skip
        step()
        print("done:", step.__name__, flush=True)
    shutil.rmtree(FOLDER / "sharded")
