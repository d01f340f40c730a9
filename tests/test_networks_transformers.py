"""transformers' families: what every family must do, on the small configurations of test_models."""

from __future__ import annotations

import copy

import pytest

from model_tester import CHECKS, Case, Made, any_size_and_one_image
from test_models import CONFIGS, save

_UNUSED = {
    "dpt": ("neck.fusion_stage.layers.0.residual_layer1",),
    "mobilenet_v2": ("mobilenet_v2.conv_1x1",),
}


def writer(name: str):
    return lambda folder, names: save(folder, copy.deepcopy(CONFIGS[name]), names)


CASES = {name: Case(writer(name), unused=_UNUSED.get(name, ()), steps=20, rate=0.02 if "vit" in name else 5e-3) for name in CONFIGS}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    known: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in known:
            known[name] = Made(name, CASES[name], tmp_path_factory.mktemp(name))
        return known[name]

    return make


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_family(check, name, made):
    check(made(name))
