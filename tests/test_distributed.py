"""Two processes: the same counts as one, and a run that ends with one model."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from runs import SMALL_RUN, TINY, environment

COUNT = """
import json, sys
import numpy as np
import hfseg.evaluation.tallies as tallies
from accelerate import Accelerator
from hfseg import Segmenter, load_data, load_model
from hfseg.evaluation import Evaluator

accelerator = Accelerator(cpu=True)
matrices = []
original = tallies.scores_from_matrix
tallies.scores_from_matrix = lambda matrix, names: (matrices.append(matrix), original(matrix, names))[1]
data = load_data("shapes/source", scenes=20)
import torch
torch.manual_seed(0)
model, processor = load_model("segformer", data.schema, config=json.loads(sys.argv[1]))
torch.manual_seed(0)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
for limit in (1, 2, 13):
    evaluator = Evaluator(data, "validation", batch_size=3, limit=limit)
    evaluator.run(Segmenter(model, processor), accelerator=accelerator, verbose=False)
if accelerator.is_main_process:
    json.dump([accelerator.num_processes, [matrix.tolist() for matrix in matrices]], open(sys.argv[2], "w"))
accelerator.end_training()
"""


def launch(processes: int, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
         *map(str, command)], env=environment(), text=True, capture_output=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_counts_are_identical_on_one_and_two_processes(tmp_path):
    script = tmp_path / "count.py"
    script.write_text(COUNT)
    for processes in (1, 2):
        launch(processes, script, json.dumps(TINY), tmp_path / f"{processes}.json")
    (alone, one), (together, two) = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert (alone, together) == (1, 2)
    assert one == two
    assert [np.sum(matrix) for matrix in one] == [n * 128 * 128 for n in (1, 2, 13)]


def test_two_processes_train_one_model(tmp_path):
    run = tmp_path / "run"
    output = launch(2, "-m", "hfseg", "train", *SMALL_RUN, "--output_dir", run, "--train.ema", "0.9",
                    "--train.max_steps", "4")  # fmt: skip
    assert "2 processes on cpu" in output
    assert json.loads((run / "eval_results.json").read_text())["num_images"] == 5
    assert len(list((run / "checkpoints").glob("step-*/random_states_*.pkl"))) == 2
    # 20 images in batches of 2 x 4 are three batches, not 2.5: every process has the same number.
    assert "3 an epoch" in output


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 5, 12])
def test_every_row_is_seen_in_every_epoch(world, samples):
    from hfseg.data.loading import EpochBatches

    seen, per_epoch = [], None
    for rank in range(world):
        batches = EpochBatches(samples, 2, seed=3, rank=rank, world=world)
        per_epoch = batches.per_epoch
        iterator = iter(batches)
        taken = [next(iterator) for _ in range(2 * per_epoch)]
        resumed = iter(EpochBatches(samples, 2, seed=3, rank=rank, world=world, start=per_epoch + per_epoch // 2))
        assert next(resumed) == taken[per_epoch + per_epoch // 2]
        assert {len(batch) for batch in taken} == {2}
        seen += [key for batch in taken for key in batch]
    for epoch in (0, 1):
        assert {index for e, index in seen if e == epoch} == set(range(samples))


def test_parameters_that_get_no_gradient_do_not_stop_two_processes(tmp_path):
    launch(2, "-m", "hfseg", "train", *SMALL_RUN, "--output_dir", tmp_path / "run", "--model.name", "mobilenet_v2",
           "--model.config", '{"depth_multiplier": 0.1}', "--train.max_steps", "3",
           "--data.image_size", "[64, 64]")  # fmt: skip
