"""The loop: it learns, it leaves what it promises, and it refuses what cannot work."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hfseg
from hfseg.data.loading import Preparation, StreamingSet, TrainingSet, model_inputs, train_loader
from hfseg.errors import UserError
from hfseg.recipe import LossConfig, TrainConfig, to_yaml
from hfseg.recipe_reading import load_recipe, shipped_recipes
from hfseg.run_directory import read_log
from hfseg.training.best_weights import pick_score
from hfseg.training.optimization import MovingAverage, rate_factor
from runs import TINY, environment, small_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory with merged and dropped classes."""
    recipe = small_recipe(tmp_path_factory.mktemp("finished") / "run", ema=0.5)
    recipe.data.labels.merge = {"round": ["disk", "ring"]}
    recipe.data.labels.drop = ["star"]
    results = hfseg.train(recipe, verbose=False)
    return recipe, results


def test_the_run_directory_holds_what_it_promises(finished):
    recipe, results = finished
    run = os.listdir(recipe.output_dir)
    for name in ("recipe.yaml", "model.safetensors", "config.json", "preprocessor_config.json", "labels.json",
                 "README.md", "eval_results.json", "train_log.jsonl", "checkpoints", "samples",
                 "learning_curve.png"):  # fmt: skip
        assert name in run
    chosen = dataclasses.replace(recipe.eval, metric="mean_iou")  # what the task's own metric is, written out
    assert load_recipe(recipe.output_dir) == dataclasses.replace(recipe, eval=chosen)
    assert list(results["per_category_iou"]) == ["background", "round", "box", "triangle", "cable"]
    assert results["num_images"] == 4 and results["protocol"]["split"] == "validation"
    with open(f"{recipe.output_dir}/eval_results.json") as file:
        assert json.load(file) == results
    lines = read_log(recipe.output_dir)
    assert [line["step"] for line in lines if "eval" not in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval" in line] == [2, 4]


def test_tiles_and_views_of_the_recipe_are_in_the_protocol(tmp_path):
    recipe = small_recipe(tmp_path / "run")
    recipe.eval.tile, recipe.eval.tta = 32, ["horizontal_flip"]
    protocol = hfseg.train(recipe, verbose=False)["protocol"]
    assert protocol["tile"] == {"size": 32, "overlap": 0.25, "windows_resized": False}
    assert protocol["test_time_augmentation"] == ["horizontal_flip"]
    assert hfseg.Segmenter.from_pretrained(recipe.output_dir).tile == 32


def test_a_run_is_the_same_fused_or_not(tmp_path):
    """Up to rounding: fusing changes the work, not the function."""
    losses = []
    for fused in (True, False):
        recipe = small_recipe(tmp_path / str(fused))
        recipe.model.fuse = fused
        losses.append(hfseg.train(recipe, verbose=False)["loss"])
        lines = read_log(recipe.output_dir)
        losses.append(next(line["loss"] for line in lines if "loss" in line))
    assert losses[0] == pytest.approx(losses[2], rel=1e-3) and losses[1] == pytest.approx(losses[3], rel=1e-5)


def test_the_evaluator_gives_the_training_score_again_and_reads_labels_as_the_run_did(finished):
    recipe, results = finished
    again = hfseg.evaluate(recipe.output_dir, hfseg.load_data("shapes/source", scenes=8), limit=4)
    assert again["per_category_iou"] == results["per_category_iou"]


def test_the_card_has_valid_metadata_with_the_true_scores(finished):
    from huggingface_hub import ModelCard

    recipe, results = finished
    card = ModelCard.load(f"{recipe.output_dir}/README.md")
    scores = {score.metric_type: score.metric_value for score in card.data.eval_results}
    assert scores["mean_iou"] == pytest.approx(results["mean_iou"], abs=1e-5)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-segmentation"
    assert card.data.base_model is None and card.data.license is None
    for name in results["per_category_iou"]:
        assert f"| `{name}` |" in card.text


def test_what_was_saved_runs_in_transformers_alone_with_the_same_map(finished, tmp_path):
    recipe, _ = finished
    row = hfseg.load_data("shapes/source", scenes=8).read("validation", 0)
    Image.fromarray(row.image).save(tmp_path / "photo.png")
    code = """
import sys
sys.modules["hfseg"] = None
import numpy as np
from PIL import Image
from transformers import pipeline
run, folder = sys.argv[1:]
pipe = pipeline("image-segmentation", run)
parts = pipe(folder + "/photo.png")
found = np.full((128, 128), -1)
for part in parts:
    found[np.asarray(part["mask"]) > 0] = pipe.model.config.label2id[part["label"]]
np.save(folder + "/map.npy", found)
"""
    done = subprocess.run([sys.executable, "-c", code, recipe.output_dir, tmp_path], env=environment(),
                          capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    mine = hfseg.Segmenter.from_pretrained(recipe.output_dir)(tmp_path / "photo.png").semantic_map
    assert (np.load(tmp_path / "map.npy") == mine).mean() > 0.999  # ties and rounding


def test_it_learns_four_images_by_heart(tmp_path):
    recipe = small_recipe(tmp_path / "run", max_steps=120, overfit=4, warmup_steps=10, learning_rate=5e-3)
    recipe.eval.eval_steps, recipe.train.logging_steps = 60, 10
    hfseg.train(recipe, verbose=False)
    losses = [line["loss"] for line in read_log(recipe.output_dir) if "eval" not in line]
    assert losses[-1] < losses[0] / 3


def test_feature_extraction_leaves_the_backbone_as_it_was(tmp_path):
    recipe = small_recipe(tmp_path / "run")
    recipe.model.name, recipe.model.config = "hfseg/shapes-segformer", {}
    recipe.transfer.strategy = "feature_extraction"
    hfseg.train(recipe, verbose=False)
    before, _ = hfseg.load_model("hfseg/shapes-segformer")
    after, _ = hfseg.load_model(recipe.output_dir)
    same = {name: torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items()}
    assert all(same[name] for name in same if name.startswith("segformer."))
    assert not same["decode_head.linear_fuse.weight"]


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path):
    weights = {}
    for size, parts in ((4, 1), (2, 2)):
        recipe = small_recipe(tmp_path / f"run{size}", max_steps=1, per_device_train_batch_size=size,
                              gradient_accumulation_steps=parts, optimizer="sgd", momentum=0.0, max_grad_norm=None,
                              weight_decay=0.0)  # fmt: skip
        recipe.loss = LossConfig()
        hfseg.train(recipe, verbose=False)
        weights[size] = hfseg.load_model(recipe.output_dir)[0].decode_head.classifier.bias.detach()
    # The bias of the classifier sees BatchNorm only through the logits, which differ little.
    torch.testing.assert_close(weights[4], weights[2], atol=2e-4, rtol=0.1)


def test_early_stopping_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("hfseg.training.best_weights.pick_score", lambda results, metric: 0.5)
    recipe = small_recipe(tmp_path / "run", max_steps=40, early_stopping=2)
    hfseg.train(recipe, verbose=False)
    assert [line["step"] for line in read_log(recipe.output_dir) if "eval" in line] == [2, 4, 6]


def test_a_process_with_a_live_loader_ends():
    script = """
from hfseg.data.loading import train_loader

loader = iter(train_loader([1, 2, 3], batch_size=1, num_workers=2))
print("the last line", flush=True)
"""
    process = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, timeout=120)
    assert process.returncode == 0 and process.stdout == b"the last line\n", process.stderr


def test_trackers_write_what_the_log_says(tmp_path):
    recipe = small_recipe(tmp_path / "run", trackers=["tensorboard"])
    hfseg.train(recipe, verbose=False)
    assert list((tmp_path / "run").rglob("events.out.*"))
    recipe = small_recipe(tmp_path / "other", trackers=["aim"])
    with pytest.raises(UserError, match="aim"):
        hfseg.train(recipe, verbose=False)


def test_a_loss_that_is_not_a_number_stops_names_the_batch_and_keeps_the_best(tmp_path, monkeypatch):
    recipe = small_recipe(tmp_path / "run")
    from hfseg.objective import Objective

    plain, calls = Objective.forward, []

    def broken(self, logits, labels):
        calls.append(logits.requires_grad)
        return plain(self, logits, labels) * (float("nan") if sum(calls) > 3 else 1.0)

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(UserError, match=r"nan at step 4.*source-train-0000"):
        hfseg.train(recipe, verbose=False)
    hfseg.Segmenter.from_pretrained(recipe.output_dir)


def test_out_of_memory_says_which_lines_would_fit(tmp_path, monkeypatch):
    from hfseg.objective import Objective

    def full(self, logits, labels):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(Objective, "forward", full)
    with pytest.raises(UserError) as caught:
        hfseg.train(small_recipe(tmp_path / "run"), verbose=False)
    assert "--train.per_device_train_batch_size 2 --train.gradient_accumulation_steps 2" in str(caught.value)


def test_nothing_in_the_way_is_overwritten(tmp_path):
    recipe = small_recipe(tmp_path / "run", max_steps=1)
    hfseg.train(recipe, verbose=False)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds another run"):
        hfseg.train(recipe, verbose=False)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "README.md").write_text("mine")
    for resume in (False, True):  # with nothing there to resume, `resume` must not clear the way
        with pytest.raises(UserError, match="files that are no run"):
            hfseg.train(small_recipe(tmp_path / "photos", resume=resume), verbose=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="holds another run"):
        hfseg.train(small_recipe(tmp_path / "run", resume=True), verbose=False)
    assert (tmp_path / "photos" / "README.md").read_text() == "mine"
    with pytest.raises(UserError, match="is a file"):
        hfseg.train(small_recipe(tmp_path / "photos" / "README.md"), verbose=False)


def test_a_bad_sample_is_named_or_skipped(tmp_path):
    folder = tmp_path / "data"
    scenes = hfseg.load_data("shapes/source", scenes=6)
    for split, kind, in (("train", "images"), ("train", "masks"), ("val", "images"), ("val", "masks")):
        (folder / split / kind).mkdir(parents=True)
    for number in range(6):
        for split in ("train", "val"):
            sample = scenes.read("train", number)
            Image.fromarray(sample.image).save(folder / split / "images" / f"{number}.png")
            Image.fromarray(sample.semantic_map).save(folder / split / "masks" / f"{number}.png")
    (folder / "train" / "images" / "3.png").write_bytes(b"")
    recipe = small_recipe(tmp_path / "run")
    recipe.data.path = str(folder)
    with pytest.raises(UserError, match=r"3\.png"):
        hfseg.train(recipe, verbose=False)
    recipe.data.on_bad_sample = "skip"
    hfseg.train(recipe, verbose=False)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_stream_trains_and_goes_on_where_it_was(tmp_path):
    """The second half of a run over a stream is the second half of the uninterrupted one."""
    for split, rows in hfseg.load_data("shapes/source", scenes=10).items():
        (tmp_path / "data").mkdir(exist_ok=True)
        rows.select(range(10)).to_parquet(tmp_path / "data" / f"{split}.parquet")

    def batches(start):
        data = hfseg.load_data(tmp_path / "data", streaming=True)
        prepare = Preparation(lambda image, semantic_map, other: (image, semantic_map), _processor(), seed=3)
        stream = StreamingSet(data["train"], data.schema, prepare, batch_size=4, start=start, buffer=5)
        loader = iter(train_loader(stream, 4))
        return [next(loader)["names"] for _ in range(4 - start)]

    whole = batches(0)
    assert whole[3:] == batches(3)
    assert len({name for names in whole for name in names[:10]}) == 10  # each row once in an epoch
    recipe = small_recipe(tmp_path / "run", max_steps=2)
    recipe.data.path, recipe.data.streaming, recipe.data.max_train_samples = str(tmp_path / "data"), True, None
    assert hfseg.train(recipe, verbose=False)["num_images"] == 4
    recipe.eval.eval_steps, recipe.output_dir = None, str(tmp_path / "other")
    with pytest.raises(UserError, match="no known length"):
        hfseg.train(recipe, verbose=False)


def _processor():
    return hfseg.load_model("segformer", config=TINY)[1]


def test_a_resumed_run_follows_the_recipe_of_now_and_refuses_what_does_not_fit(tmp_path):
    recipe = small_recipe(tmp_path / "run")
    hfseg.train(recipe, verbose=False)
    again = dataclasses.replace(recipe, train=dataclasses.replace(
        recipe.train, resume=True, max_steps=6, learning_rate=7e-5, schedule="constant"))  # fmt: skip
    hfseg.train(again, verbose=False)
    assert [line["learning_rate"] for line in read_log(recipe.output_dir) if "eval" not in line][-1] == 7e-5
    other = dataclasses.replace(again, train=dataclasses.replace(again.train, max_steps=8, ema=0.9))
    with pytest.raises(UserError, match="does not fit the recipe"):
        hfseg.train(other, verbose=False)


def test_the_score_is_that_of_the_published_weights_whatever_the_precision_of_training(tmp_path):
    recipe = small_recipe(tmp_path / "run", mixed_precision="bf16", learning_rate=2e-2)
    results = hfseg.train(recipe, verbose=False)
    again = hfseg.evaluate(recipe.output_dir, recipe.data.path, limit=4)
    assert again["per_category_iou"] == results["per_category_iou"]


def test_precision_memory_format_and_checkpointing_run_together(tmp_path):
    recipe = small_recipe(tmp_path / "run", mixed_precision="bf16", channels_last=True, gradient_checkpointing=True,
                          l1=1e-6, optimizer="sgd", schedule="cyclic")  # fmt: skip
    assert hfseg.train(recipe, verbose=False)["num_images"] == 4


def test_transformers_trainer_takes_the_data_and_the_model(tmp_path):
    from transformers import Trainer, TrainingArguments

    data = hfseg.load_data("shapes/source", scenes=8)
    torch.manual_seed(0)
    model, processor = hfseg.load_model("segformer", data.schema, config=TINY)
    prepare = Preparation(lambda image, semantic_map, other: (image, semantic_map), processor)
    training_set = TrainingSet(data["train"], data.schema, prepare)
    arguments = TrainingArguments(str(tmp_path), max_steps=6, per_device_train_batch_size=4, learning_rate=2e-3,
                                  logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
                                  remove_unused_columns=False, save_strategy="no")  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=training_set, data_collator=model_inputs)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_read_and_written_back(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe
    assert f"--config {name}" in shipped_recipes()[name].read_text()


@pytest.mark.parametrize("schedule", ["poly", "cosine", "linear", "step", "cyclic", "constant"])
def test_schedules_rise_peak_and_fall(schedule):
    config = TrainConfig(schedule=schedule, warmup_steps=5)
    course = [rate_factor(step, 105, config) for step in range(105)]
    assert course[:6] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert all(0 <= factor <= 1 for factor in course)
    if schedule not in ("cyclic", "constant"):
        assert course[5:] == sorted(course[5:], reverse=True) and course[-1] < 0.05
    if schedule == "cyclic":
        assert sum(a < b for a, b in itertools.pairwise(course[5:])) == config.cycles - 1


def test_the_moving_average_is_the_written_out_sum():
    model = torch.nn.Linear(2, 1)
    average, expected = MovingAverage(model, 0.9), copy.deepcopy(model.state_dict())
    for update in range(1, 30):
        for parameter in model.parameters():
            parameter.data.normal_()
        average.update(model)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = {k: decay * v + (1 - decay) * model.state_dict()[k] for k, v in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(average.average[name], value)
    last = copy.deepcopy(model.state_dict())
    average.exchange(model)
    torch.testing.assert_close(model.state_dict(), expected)
    average.exchange(model)
    torch.testing.assert_close(model.state_dict(), last)


def test_scores_that_pick_the_best():
    results = {"mean_iou": 0.5, "loss": 2.0, "mean_f1": None, "per_category_iou": {}}
    assert pick_score(results, "mean_iou") == 0.5
    assert pick_score(results, "loss") == -2.0
    assert pick_score(results, "mean_f1") == -float("inf")
    with pytest.raises(UserError, match="loss, mean_f1, mean_iou"):
        pick_score(results, "miou")
