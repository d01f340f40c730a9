"""After the last step: samples and speed of the best weights, the card, the hub."""

from __future__ import annotations

import shlex

import torch

from hfseg.data import SegmentationData
from hfseg.errors import UserError
from hfseg.hub.card import write_card
from hfseg.hub.card_speed import measure_speed
from hfseg.hub.push import push
from hfseg.run_directory import RESULTS, SAMPLES
from hfseg.segmenter import Segmenter
from hfseg.training.best_weights import BestWeights, shown_as
from hfseg.training.learner import Learner
from hfseg.training.progress import Progress
from hfseg.training.setup import Run


def finish(run: Run, data: SegmentationData, learner: Learner, best: BestWeights, progress: Progress) -> None:
    """Completes the run directory, and pushes it where the recipe says so; the first process calls it.

    Args:
        run: The run.
        data: The data.
        learner: What was trained.
        best: What scored it.
        progress: Where it ended.

    Raises:
        UserError: When the hub does not take it; the run directory is whole then.
    """
    directory, recipe, evaluator = run.directory, run.recipe, best.evaluator
    segmenter = Segmenter.from_pretrained(str(directory.path), device=run.device, fuse=recipe.model.fuse,
                                          **shown_as(run))
    evaluator.draw_samples(segmenter, directory.path / SAMPLES, recipe.eval.samples)
    facts = {
        "steps": progress.step, "best_step": progress.best_step, "seconds": round(progress.seconds, 1),
        "processes": run.world, "device": device_name(run.device), "skipped_samples": len(progress.skipped),
        "training_split": data.train, "training_images": None if data.streaming else len(data[data.train]),
        **learner.base,
    }  # fmt: skip
    if images := [sample.image for sample in evaluator.samples(3)]:
        facts["speed"] = measure_speed(segmenter, images)
    directory.write_json(RESULTS, {**directory.read_json(RESULTS), "training": facts})
    write_card(directory.path)
    _publish(run)
    where = shlex.quote(str(directory.path))
    run.say(f"best {recipe.eval.metric} at step {progress.best_step}. It all lies in {directory.path}; next:\n"
            f"  hfseg predict {where} IMAGES --output out\n  hfseg evaluate {where} --data DATA")


def _publish(run: Run) -> None:
    hub, path = run.recipe.hub, run.directory.path
    if run.publisher:
        run.publisher.close()
    if not hub.push_to_hub:
        return
    try:
        push(path, hub.repo_id, private=hub.private, tag=hub.tag, space=hub.space, say=run.say)
    except UserError as error:
        raise UserError(f"the run is whole in {path}, but not pushed: {error.found}", error.allowed,
                        f"{error.fix or ''}; then: hfseg push {shlex.quote(str(path))} {hub.repo_id}") from error


def device_name(device: torch.device) -> str:
    """Returns what computed, for the card.

    Args:
        device: Of the run.

    Returns:
        Such as `NVIDIA H200`, or `cpu, 2 threads`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
