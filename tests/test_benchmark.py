"""The benchmark script, with tiny sizes: every section checks that both sides agree before it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_every_section_runs(tmp_path):
    output = str(tmp_path / "results")
    command = [sys.executable, "scripts/benchmark.py", "--quick", "--rounds", "1", "--output", output]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["section"] for row in rows} >= {"upsample", "fuse", "segmenter", "step", "masks", "scaling", "data"}
    assert len((tmp_path / "results.md").read_text().splitlines()) == len(rows) + 4
    assert (tmp_path / "results.png").stat().st_size > 1000
