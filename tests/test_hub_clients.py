"""transformers, datasets and evaluate work with the local hub as with the real one, and ask nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfseg.hub.local import LocalHub

HERE = Path(__file__).parent


@pytest.mark.parametrize("transfer", ["xet", "lfs"])
def test_the_libraries_above_the_client_push_and_load(tmp_path, transfer):
    with LocalHub(tmp_path / "hub") as hub:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **hub.environment(), "HF_HOME": str(tmp_path / "home"),
               "PYTHONPATH": str(HERE / "loopback_only"), "HF_HUB_DISABLE_XET": str(int(transfer == "lfs")),
               "HF_EVALUATE_OFFLINE": "0"}  # fmt: skip
        done = subprocess.run([sys.executable, str(HERE / "hub_clients.py"), str(tmp_path)], env=env,
                              capture_output=True, text=True, timeout=280)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert done.stdout.count("done:") == 5
