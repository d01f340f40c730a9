"""Two processes: the same counts as one, and a run that ends with one model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runs import SMALL_RUN, TINY, environment

BOTH = """
import json, sys
import hfseg.evaluation.tallies as tallies
from accelerate import Accelerator
from hfseg import Segmenter, load_data, load_model
from hfseg.cli import main
from hfseg.evaluation import Evaluator

accelerator = Accelerator(cpu=True)
matrices = []
original = tallies.scores_from_matrix
tallies.scores_from_matrix = lambda matrix, names: (matrices.append(matrix.tolist()), original(matrix, names))[1]
data = load_data("shapes/source", scenes=20)
import torch
torch.manual_seed(0)
model, processor = load_model("segformer", data.schema, config=json.loads(sys.argv[1]))
torch.manual_seed(0)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
together, alone = [], []
for limit in (1, 2, 13):
    evaluator = Evaluator(data, "validation", batch_size=3, limit=limit)
    evaluator.run(Segmenter(model, processor), accelerator=accelerator, verbose=False)
    together.append(matrices.pop())
    if accelerator.is_main_process:
        evaluator.run(Segmenter(model, processor), verbose=False)
        alone.append(matrices.pop())
if accelerator.is_main_process:
    json.dump([accelerator.num_processes, alone, together], open(sys.argv[2], "w"))
tallies.scores_from_matrix = original
sys.exit(main(sys.argv[3:]))
"""


def launch(processes: int, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
         *map(str, command)], env=environment(), text=True, capture_output=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, str]:
    """Two processes that count, and then train: their folder, and what they printed."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "both.py").write_text(BOTH)
    printed = launch(2, folder / "both.py", json.dumps(TINY), folder / "counts.json", "train", *SMALL_RUN,
                     "--output_dir", folder / "run", "--train.ema", "0.9", "--train.max_steps", "4")  # fmt: skip
    return folder, printed


def test_counts_are_identical_on_one_and_two_processes(both):
    processes, alone, together = json.loads((both[0] / "counts.json").read_text())
    assert processes == 2 and alone == together
    assert [np.sum(matrix) for matrix in alone] == [n * 128 * 128 for n in (1, 2, 13)]


def test_two_processes_train_one_model(both):
    run, printed = both[0] / "run", both[1]
    assert "2 processes on cpu" in printed
    assert json.loads((run / "eval_results.json").read_text())["num_images"] == 5
    assert len(list((run / "checkpoints").glob("step-*/random_states_*.pkl"))) == 2
    # 20 images in batches of 2 x 4 are three batches, not 2.5: every process has the same number.
    assert "3 an epoch" in printed


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
