"""Fine-tune a model: the whole loop, from the recipe to the run directory."""

from __future__ import annotations

import math
import shlex
import shutil
import time
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from tqdm.auto import tqdm

from hfseg.checkpoints import Checkpoints
from hfseg.curves import draw_learning_curve
from hfseg.data import SegmentationData, load_recipe_data
from hfseg.data.augment import Augmentation, rare_classes, resolve
from hfseg.data.decoded import decoded_rows
from hfseg.data.loading import (
    MaskTargets,
    Preparation,
    StreamingSet,
    TrainingSet,
    iterating,
    next_batch,
    train_loader,
    worker_count,
)
from hfseg.errors import UserError
from hfseg.evaluation import Evaluator
from hfseg.hub.background import BackgroundPush
from hfseg.hub.card import write_card
from hfseg.hub.card_base import base_facts
from hfseg.hub.card_speed import measure_speed
from hfseg.hub.push import push, ready
from hfseg.interruption import Interrupted, StopSignals, batch_advice
from hfseg.metrics.scorers import MAIN_SCORE, SHOWN, WORDS
from hfseg.models import family_of, load_model
from hfseg.models.fusing import fuse
from hfseg.objective import ModelLoss, PixelLoss, build_loss, class_weights
from hfseg.optimization import MovingAverage, build_optimizer, l1_penalty, rate_factor, set_learning_rate
from hfseg.recipe import Recipe, to_yaml
from hfseg.recipe_reading import check, load_recipe
from hfseg.run_directory import CHECKPOINTS, LOG, RECIPE, RESULTS, SAMPLES, WEIGHTS, RunDirectory
from hfseg.run_setup import (
    capture_auxiliary_head,
    crop_size,
    device_name,
    fill_colour,
    flat,
    frequencies,
    full_precision,
    limit_data,
    pick_score,
    start_accelerator,
    step_counts,
    synchronise,
)
from hfseg.segmenter import Segmenter
from hfseg.transfer import plan_transfer


@dataclass
class Progress:
    """Where a run stands: all of it is saved with each checkpoint."""

    step: int = 0
    batches: int = 0
    best_score: float | None = None
    best_step: int = 0
    evaluations_without_better: int = 0
    evaluated_step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped: list[str] = field(default_factory=list)
    processes: int = 1
    seconds: float = 0.0
    optimizer: str = ""
    names: list[str] = field(default_factory=list)
    measure: list = field(default_factory=list)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        self.__dict__.update(state)


def train(recipe: Recipe | str | Path, *, data: SegmentationData | None = None, verbose: bool = True) -> dict:
    """Trains by a recipe and leaves a run directory that `from_pretrained` loads.

    Args:
        recipe: A `Recipe`, a path to its YAML, or the name of a shipped one.
        data: Data loaded already, in place of `recipe.data.path`.
        verbose: Whether to print tables and a progress bar.

    Returns:
        The contents of eval_results.json for the best weights.

    Raises:
        UserError: For what the user can mend: recipe, data, model, output directory, memory, a loss that is NaN.
        Interrupted: After Ctrl-C or SIGTERM, with the state saved.

    Example:
        >>> import hfseg, tempfile
        >>> recipe = hfseg.Recipe(output_dir=tempfile.mkdtemp())
        >>> recipe.data.path, recipe.model.name = "shapes/target", "hfseg/shapes-segformer"
        >>> recipe.data.max_train_samples = recipe.data.max_eval_samples = 4
        >>> recipe.train.max_steps = 1
        >>> sorted(hfseg.train(recipe, verbose=False))[:2]
        ['loss', 'mean_accuracy']
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(str(recipe))
    check(recipe)
    run = RunDirectory(recipe.output_dir)
    try:
        return _train(recipe, run, data, verbose)
    finally:
        for cut in run.path.glob(".writing-push-*"):  # a push in the background that did not get to its end
            shutil.rmtree(cut, ignore_errors=True)
        run.release()
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # after an error; gloo aborts else
            torch.distributed.destroy_process_group()


def _train(recipe: Recipe, run: RunDirectory, data: SegmentationData | None, verbose: bool) -> dict:
    metric = recipe.eval.metric or MAIN_SCORE[recipe.task]
    recipe = replace(recipe, eval=replace(recipe.eval, metric=metric))
    config, resume = recipe.train, recipe.train.resume
    accelerator = start_accelerator(recipe)
    main, device = accelerator.is_main_process, accelerator.device
    world = accelerator.num_processes
    say = tqdm.write if verbose and main else (lambda *_: None)
    if main:
        run.claim(resume or False)
        if recipe.hub.push_to_hub:
            ready(recipe.hub.repo_id, recipe.hub.private, recipe.hub.tag, recipe.hub.space)
    publisher = None
    if main and recipe.hub.push_to_hub and recipe.hub.strategy == "best":
        publisher = BackgroundPush(run.path, recipe.hub.repo_id, say, private=recipe.hub.private)
    accelerator.wait_for_everyone()
    say(f"{world} process{'es' if world > 1 else ''} on {device.type}, {config.mixed_precision}")

    # Data: rows and labels.
    set_seed(recipe.seed)
    with accelerator.main_process_first():  # the first process fills the cache for the others
        data = copy(data) if data is not None else load_recipe_data(recipe)
    limit_data(recipe, data)
    schema, channels = data.schema, data.channels
    for note in data.notes:
        say(f"data: {note}")
    say(schema.table())
    if schema.num_labels < 2 and recipe.task == "semantic":
        raise UserError(f"the data has one class, {schema.names[0]!r}, and what is not it counts for nothing",
                        "two classes or more", "name the rest, too: --data.labels.binary true makes it the background")
    counts = frequencies(recipe, data, say)

    # Model: what is loaded, what trains, what is minimised.
    model, processor = load_model(
        recipe.model.name, labels=schema, revision=recipe.model.revision, weights=recipe.model.weights,
        backbone=recipe.model.backbone, backbone_weights=recipe.model.backbone_weights,
        config=recipe.model.config, channels=channels, image_size=recipe.data.image_size,
        trust_remote_code=recipe.model.trust_remote_code, task=recipe.task,
        loss={"no_object_weight": recipe.loss.no_object_weight, "num_points": recipe.loss.num_points},
    )  # fmt: skip
    say(str(model.load_report))
    if recipe.model.fuse and (report := fuse(model).fuse_report):
        say(str(report))
    family = family_of(model.config)
    from_scratch = len(model.load_report.new) == len(model.state_dict())
    base = {}
    if main and (started := model.load_report.backbone_weights):
        base = {"backbone_weights": started}
    elif main and not from_scratch:
        base = base_facts(recipe.model.name, recipe.model.revision)
    plan = plan_transfer(
        model, family, recipe.transfer.strategy, config.learning_rate,
        1.0 if from_scratch else recipe.transfer.head_learning_rate_factor, config.weight_decay,
        stages=recipe.transfer.stages, head_steps=recipe.transfer.head_steps,
    )  # fmt: skip
    say(plan.table())
    weights = class_weights(recipe.loss.class_weights, counts, schema.names)
    objective = None if family.predicts_masks else build_loss(
        recipe.loss, schema.num_labels, schema.ignore_index, weights).to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(f"{family.model_type} cannot trade time for memory", fix="leave gradient_checkpointing out")
        model.gradient_checkpointing_enable()
    if config.compile:
        model.compile()
    auxiliary = capture_auxiliary_head(model)
    average = MovingAverage(model.to(device), config.ema) if config.ema else None
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=(
        family.unused_parameters or plan.switches))
    network, optimizer = accelerator.prepare(model, build_optimizer(plan.groups, config))
    if objective is None and metric == "loss":
        raise UserError(f"eval.metric is loss, which {family.model_type} has in training alone",
                        ", ".join(SHOWN[recipe.task]), f"--eval.metric {MAIN_SCORE[recipe.task]}")
    minimised = PixelLoss(objective, model, auxiliary) if objective else ModelLoss(family, model, recipe.task, schema)
    shown_as = {"tile": recipe.eval.tile, "tta": recipe.eval.tta, "task": recipe.task}
    segmenter = Segmenter(model, processor, palette=schema.palette, **shown_as,
                          things=[i for i, thing in enumerate(schema.is_thing) if thing])
    evaluator = Evaluator(
        data, data.validation, batch_size=recipe.eval.batch_size, on_bad_sample=recipe.data.on_bad_sample,
        limit=recipe.data.max_eval_samples, channels=channels, tile=recipe.eval.tile, tta=recipe.eval.tta,
        max_detections=recipe.eval.max_detections,
    )  # fmt: skip

    # State: what is saved, and where this run starts.
    measure = [metric, *evaluator.measures()]  # scores of another measure do not compare
    progress = Progress(processes=world, optimizer=config.optimizer, names=list(schema.names), measure=measure)
    checkpoints = Checkpoints(run.path / CHECKPOINTS, accelerator, config.save_total_limit)
    accelerator.register_for_checkpointing(progress, *([average] if average else []))
    set_seed(recipe.seed, device_specific=True)  # dropout differs between processes
    found = checkpoints.find(resume) if resume else None
    if resume and not found:
        say(f"nothing to resume in {run.path} yet: the run starts")
    if found:
        settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        checkpoints.load(found)
        say(f"resumed from {found}")
        for name, then, now in (("labels", progress.names, list(schema.names)),
                                ("train.optimizer", progress.optimizer, config.optimizer)):
            if then != now:
                raise UserError(f"checkpoint {found} does not fit the recipe: {name} then {then}, now {now}",
                                "the labels and the optimizer of the run that wrote it",
                                f"a new run can start from the weights: --model.name {run.path} --output_dir NEW")
        origin = found.parent.parent / RECIPE
        was = load_recipe(str(origin)).model if origin.is_file() else recipe.model
        begun = [(part.name, part.backbone, part.weights, part.revision) for part in (was, recipe.model)]
        if begun[0] != begun[1]:
            raise UserError(f"checkpoint {found} does not fit the recipe: it began as model {was.name} "
                            f"({was.weights}), and the recipe says {recipe.model.name} ({recipe.model.weights})",
                            "the model section of the run that wrote it", "leave the --model flags out")
        for group, now in zip(optimizer.param_groups, settings, strict=True):  # what the recipe says now, holds
            group.update(now)
        scored = progress.evaluated_step
        if progress.measure != measure:
            say("note: best weights are chosen anew, since eval.metric or the validation data changed")
            progress.measure, progress.best_score, progress.evaluations_without_better = measure, None, 0
            progress.evaluated_step = 0
        if not (run.path / WEIGHTS).exists():  # another run's checkpoint: its best weights lie elsewhere
            progress.best_score, progress.evaluated_step = None, 0
        elif run.read_json(RESULTS).get("training", {}).get("best_step") != progress.best_step:
            progress.best_score = None  # those of the checkpoint were replaced by later ones, which are given up now
        if not main:
            progress.loss_sum, progress.loss_count = 0.0, 0  # the first process holds the sum of all
        if progress.processes != world:
            say(f"note: {progress.processes} processes wrote it: from here on the order of the data is another")
            progress.processes = world
        if progress.evaluated_step < scored:  # this step is scored again, and its line written again
            scored = min(scored, progress.step - 1)
        checkpoints.remove_after(found)
    if main:
        run.cut_log(progress.step, scored) if found else run.clear()

    # Batches: from the first one that this state has not seen.
    accumulation, batch_size = config.gradient_accumulation_steps, config.per_device_train_batch_size
    augmentation = Augmentation(
        resolve(recipe.augment), size=crop_size(recipe, data, family.input_size(model.config)),
        ignore_index=schema.ignore_index, mean=fill_colour(processor, channels), rare_classes=rare_classes(counts)
        if counts is not None else (),
    )  # fmt: skip
    on_gpu = device.type != "cpu"
    targets = MaskTargets(recipe.task, schema.is_thing, schema.ignore_index) if family.predicts_masks else None
    prepare = Preparation(augmentation, processor, recipe.data.image_size, recipe.seed, raw=True, targets=targets)
    shard = {"rank": accelerator.process_index, "world": world, "start": progress.batches}
    if data.streaming:
        batches_per_epoch = None
        training_set = StreamingSet(data[data.train], schema, prepare, batch_size, channels,
                                    recipe.data.on_bad_sample, **shard)
    else:
        batches_per_epoch = math.ceil(len(data[data.train]) / (batch_size * world))
        kept = recipe.data.cache_gb if recipe.task == "semantic" else 0  # the cache holds maps, and no objects
        cache = decoded_rows(data[data.train], schema, channels, kept, on_gpu)
        if cache:
            say(f"data: {cache.note}")
        training_set = TrainingSet(data[data.train], schema, prepare, channels, recipe.data.on_bad_sample, cache)
    total, eval_every, save_every = step_counts(recipe, batches_per_epoch)
    if main and found and progress.step >= total and progress.evaluated_step == progress.step:
        say(f"nothing left to train: the checkpoint is at step {progress.step} of {total}")
    elif main:
        run.write(RECIPE, to_yaml(replace(recipe, train=replace(config, resume=False))))
    steps_per_epoch = batches_per_epoch and batches_per_epoch / accumulation
    say(f"{total} steps of {batch_size * accumulation * world} images"
        + (f", {steps_per_epoch:g} an epoch" if steps_per_epoch else "") + f"; evaluated every {eval_every}")
    loader = train_loader(training_set, batch_size, seed=recipe.seed, pin_memory=device.type == "cuda",
                          num_workers=worker_count(recipe.data.num_workers, on_gpu), **shard)
    if config.trackers:
        accelerator.init_trackers("hfseg", config=flat(asdict(recipe)))

    def evaluate() -> None:
        """Scores the weights (their average, with EMA) and keeps them if they are the best."""
        synchronise(accelerator, model, average)
        if average:
            average.exchange(model)
        with full_precision(model):
            results = evaluator.run(segmenter, objective=objective, accelerator=accelerator, verbose=verbose)
        if objective and results["loss"] is None:
            raise UserError(f"the validation loss after step {progress.step} is not a number: the weights diverged",
                            fix=divergence_fix())
        score = pick_score(results, metric)
        results["training"] = {"best_step": progress.step, **base}
        better = progress.best_score is None or score > progress.best_score
        if better:
            progress.best_score, progress.best_step, progress.evaluations_without_better = score, progress.step, 0
            if main:
                run.save_model(model, processor, schema, results)
        else:
            progress.evaluations_without_better += 1
        if average:
            average.exchange(model)
        plan.set_train_mode(model)
        progress.evaluated_step = progress.step
        shown = {key: results[key] for key in ("loss", *SHOWN[recipe.task])}
        accelerator.log({f"eval/{key}": value for key, value in shown.items() if value is not None},
                        step=progress.step)
        if main:
            run.log({"step": progress.step, "eval": shown})
            draw_learning_curve(run.path / LOG, run.path / "learning_curve.png")
        if publisher and better:
            publisher.offer(f"Best weights so far: {metric} {abs(score):.4f} after step {progress.step}")
        report_skipped(evaluator.skipped)
        for text in gather_object(progress.skipped):  # by all processes, so that the first one can tell
            report_skipped([text])
        main_score = results[MAIN_SCORE[recipe.task]]
        say(f"step {progress.step}: {WORDS[MAIN_SCORE[recipe.task]]} "
            + ("undefined" if main_score is None else f"{main_score:.4f}")
            + (f", loss {results['loss']:.4f}" if results["loss"] is not None else "")
            + (", the best so far" if better else ""))

    def divergence_fix() -> str:
        kept = f"; {run.path} keeps the best weights so far" if progress.best_step else ""
        return f"lower train.learning_rate, or set train.mixed_precision to bf16 or fp32{kept}"

    def report_skipped(texts: list[str]) -> None:
        """Names each bad sample once."""
        for text in texts:
            if text not in progress.skipped:
                progress.skipped.append(text)
                say(f"skipped: {text}")

    def save() -> None:
        nonlocal began
        progress.seconds += time.monotonic() - began
        began = time.monotonic()
        if world > 1:
            total_loss = added_up(progress.loss_sum, progress.loss_count)
            progress.loss_sum, progress.loss_count = total_loss if main else (0.0, 0)
        checkpoints.save(progress.step)

    def added_up(*values: float) -> list[float]:
        return accelerator.reduce(torch.tensor(values, device=device), "sum").tolist()

    # The loop.
    bar = tqdm(total=total, initial=progress.step, desc="training", unit="step", disable=not (verbose and main))
    plan.set_train_mode(model)
    began = window = time.monotonic()
    images, norm = 0, None
    with StopSignals() as signals, batch_advice(recipe), iterating(loader) as batches, bar:
        while True:
            due = progress.step % eval_every == 0 or progress.step == total
            if due and progress.evaluated_step < progress.step:
                evaluate()
                save()
                window, images = time.monotonic(), 0
            if config.early_stopping and progress.evaluations_without_better >= config.early_stopping:
                say(f"no better {metric} in {config.early_stopping} evaluations: stopped early")
                break
            if progress.step >= total:
                break

            plan.at_step(progress.step, total, model, optimizer)
            set_learning_rate(optimizer, rate_factor(progress.step, total, config))
            for _ in range(accumulation):
                batch = next_batch(batches)
                report_skipped(batch["skipped"])
                pixels = prepare.normalise(batch["pixel_values"].to(device, non_blocking=True))
                if config.channels_last:
                    pixels = pixels.contiguous(memory_format=torch.channels_last)
                with accelerator.accumulate(network):
                    loss = minimised(network, pixels, batch) + l1_penalty(plan.groups, config.l1)
                    value = loss.item()
                    if not math.isfinite(value):
                        raise UserError(
                            f"the loss became {value} at step {progress.step + 1}, in the batch of "
                            + ", ".join(batch["names"]),
                            fix=f"look at these samples, or {divergence_fix()}",
                        )
                    accelerator.backward(loss)
                    if accelerator.sync_gradients and config.max_grad_norm:
                        norm = float(accelerator.clip_grad_norm_(network.parameters(), config.max_grad_norm))
                    optimizer.step()
                    optimizer.zero_grad()
                progress.loss_sum += value
                progress.loss_count += 1
                progress.batches += 1
                images += len(pixels) * world
            progress.step += 1
            if average:
                average.update(model)
            bar.update()

            if progress.step % config.logging_steps == 0 or progress.step == total:
                loss_sum, loss_count = added_up(progress.loss_sum, progress.loss_count)
                speed = images / (time.monotonic() - window)
                line = {
                    "step": progress.step,
                    "epoch": progress.step / steps_per_epoch if steps_per_epoch else None,
                    "loss": loss_sum / loss_count,
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    "grad_norm": norm,
                    "images_per_second": speed,
                }
                bar.set_postfix(loss=f"{line['loss']:.3f}", lr=f"{line['learning_rate']:.1e}", img_s=f"{speed:.1f}")
                if main:
                    run.log(line)
                accelerator.log({f"train/{key}": value for key, value in line.items() if value is not None},
                                step=progress.step)
                progress.loss_sum, progress.loss_count = 0.0, 0
                window, images = time.monotonic(), 0

            stopped = signals.agreed(accelerator)
            evaluated_next = progress.step % eval_every == 0 or progress.step == total  # and saved after that
            if stopped or (save_every and progress.step % save_every == 0 and not evaluated_next):
                save()
            if stopped:
                raise Interrupted(progress.step, run.resume_command(world), stopped, speaks=main)
    if main:
        best = Segmenter.from_pretrained(str(run.path), device=device, fuse=recipe.model.fuse, **shown_as)
        evaluator.draw_samples(best, run.path / SAMPLES, recipe.eval.samples)
        facts = {
            "steps": progress.step, "best_step": progress.best_step, "seconds": round(progress.seconds, 1),
            "processes": world, "device": device_name(device), "skipped_samples": len(progress.skipped),
            "training_split": data.train, "training_images": None if data.streaming else len(data[data.train]), **base,
        }  # fmt: skip
        if images := [sample.image for sample in evaluator.samples(3)]:
            facts["speed"] = measure_speed(best, images)
        run.write_json(RESULTS, {**run.read_json(RESULTS), "training": facts})
        write_card(run.path)
        where = shlex.quote(str(run.path))
        if publisher:
            publisher.close()
        if recipe.hub.push_to_hub:
            try:
                push(run.path, recipe.hub.repo_id, private=recipe.hub.private, tag=recipe.hub.tag,
                     space=recipe.hub.space, say=say)  # fmt: skip
            except UserError as error:
                raise UserError(f"the run is whole in {run.path}, but not pushed: {error.found}", error.allowed,
                                f"{error.fix or ''}; then: hfseg push {where} {recipe.hub.repo_id}") from error
        say(f"best {metric} at step {progress.best_step}. It all lies in {run.path}; next:\n"
            f"  hfseg predict {where} IMAGES --output out\n  hfseg evaluate {where} --data DATA")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run.read_json(RESULTS)
