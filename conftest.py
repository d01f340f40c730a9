"""What all tests share: no network, few threads, and where the real data lies."""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # `make test` has one process on each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# Where a red test stops others, all draws are the same ones each time; a developer's machine goes on looking.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None)
settings.load_profile("same" if os.environ.get("CI") else "new")

ROOT = Path(__file__).resolve().parent
collect_ignore_glob = ["tests/hub_client*.py", "tests/loopback_only/*"]  # what tests run in processes of their own


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, where this machine has it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real data sets are not on this machine (looked beside the repository)")
    return path


@pytest.fixture
def online(monkeypatch) -> None:
    """Lets huggingface_hub speak to a hub of the test's own, which lies on this machine."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(autouse=True)
def _online_doctests(request) -> None:
    """The examples of hfseg.hub have a hub of their own."""
    if request.node.nodeid.startswith("hfseg/hub/"):
        request.getfixturevalue("online")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Fails, and shows where, if this process cannot end after the last test."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
