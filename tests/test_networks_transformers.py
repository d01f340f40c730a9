"""transformers' families: what every family must do, on the small configurations of test_models."""

from __future__ import annotations

import copy

import pytest
from test_models import CONFIGS, save

from model_tester import CHECKS, Case, maker

_UNUSED = {
    # What transformers' heads leave out: the last of the hidden states, a sum with nothing before it.
    "dpt": ("neck.fusion_stage.layers.0.residual_layer1", "dpt.layernorm"),
    "beit": ("beit.layers.3",),
    "data2vec-vision": ("data2vec_vision.encoder.layer.3",),
    "mobilenet_v2": ("mobilenet_v2.conv_1x1",),
}


def writer(name: str):
    return lambda folder, names: save(folder, copy.deepcopy(CONFIGS[name]), names)


CASES = {
    name: Case(writer(name), unused=_UNUSED.get(name, ()), steps=20, rate=0.03 if "vit" in name else 5e-3)
    for name in CONFIGS
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with maker(CASES, tmp_path_factory) as make:
        yield make


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_family(check, name, made):
    check(made(name))
