"""What every family must do, transformers' and hfseg's own: a test file lists its models as `Case`s, a line each.

    CASES = {"unet": Case("hfseg/unet", "tu-test_resnet"), ...}

    @pytest.fixture(scope="module")
    def made(tmp_path_factory):
        with maker(CASES, tmp_path_factory) as make:
            yield make

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    @pytest.mark.parametrize("name", CASES)
    def test_network(name, check, made):
        check(made(name))
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from hfseg.labels import LabelSchema
from hfseg.models import family_of, load_for_inference, load_model

NAMES = ("road", "car", "tree")
STORED = Path(__file__).with_name("state_dict_names.json")


@dataclass
class Case:
    """A small model of a family.

    Attributes:
        name: For `load_model`, or what writes a checkpoint into a folder.
        backbone: For hfseg's own.
        config: Overrides of the configuration.
        unused: Prefixes of parameters that no output depends on, and so get no gradient.
        no_export: Why torch.export cannot take it.
        steps: That overfit one batch.
        rate: Learning rate of that.
    """

    name: str | Callable
    backbone: str | None = None
    config: dict = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    no_export: str | None = None
    steps: int = 12
    rate: float = 3e-3

    def key(self, name: str) -> str:
        return name if callable(self.name) else self.name

    def write(self, folder: Path) -> None:
        """Writes a checkpoint that knows the classes road, car and tree."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        if callable(self.name):
            self.name(folder, NAMES)
            return
        model, processor = load_model(self.name, NAMES, backbone=self.backbone, config=self.config, weights="random")
        settle_statistics(model)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def settle_statistics(model: nn.Module) -> None:
    """Gives BatchNorm statistics of noise: those of a fresh network let its outputs shrink to nothing, or explode."""
    with torch.no_grad():
        model.train()
        for _ in range(12):
            model(pixel_values=torch.randn(2, model.config.num_channels, 64, 64))
        model.eval()


class Made:
    """A case on disk and in memory; checks must not change `model`.

    Args:
        case: Which.
        folder: An empty one.
    """

    def __init__(self, name: str, case: Case, folder: Path):
        self.name, self.case, self.folder = name, case, folder
        case.write(folder)

    @cached_property
    def model(self) -> nn.Module:
        return load_for_inference(str(self.folder))[0]

    @cached_property
    def size(self) -> tuple[int, int]:
        return family_of(self.model.config).input_size(self.model.config) or (64, 64)

    def pixels(self, count: int = 2, channels: int = 3, size: tuple[int, int] | None = None) -> Tensor:
        return torch.randn(count, channels, *(size or self.size), generator=torch.Generator().manual_seed(1))

    def trained(self) -> nn.Module:
        """A copy that may be trained, without randomness."""
        model = copy.deepcopy(self.model).train()
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
        return model


@contextmanager
def maker(cases: dict[str, Case], tmp_path_factory) -> Iterator[Callable[[str], Made]]:
    """Makes each case once, for all checks of a file; on one thread, which small networks are fastest on."""
    known: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in known:
            known[name] = Made(name, cases[name], tmp_path_factory.mktemp("made") / name)
        return known[name]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield make
    finally:
        torch.set_num_threads(threads)


def logits_of(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Compares relative to the largest logit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max() + 1e-6))


def write_names(cases: dict[str, Case], folder: Path) -> None:
    """Stores the names of a file's cases, once it was made sure that old checkpoints load.

    Run it as `python -c "import sys; sys.path[:0] = ['tests', '.']; from model_tester import *; from test_networks
    import CASES; write_names(CASES, Path('/tmp/names'))"`.
    """
    stored = json.loads(STORED.read_text())
    for name, case in cases.items():
        case.write(folder / name)
        stored[case.key(name)] = names_digest(folder / name)
    STORED.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")


def names_digest(folder: Path) -> str:
    with safe_open(folder / "model.safetensors", "pt") as file:
        lines = sorted(f"{name} {tuple(file.get_slice(name).get_shape())}" for name in file.keys())  # noqa: SIM118
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# The checks.


def every_parameter_gets_a_gradient(made: Made) -> None:
    model = made.trained()
    logits = model(pixel_values=made.pixels()).logits
    assert logits.shape[:2] == (2, len(NAMES)) and logits.isfinite().all(), logits.shape
    labels = torch.randint(0, 3, (2, *made.size))
    loss = F.cross_entropy(F.interpolate(logits, size=made.size, mode="bilinear"), labels)
    if getattr(model, "auxiliary_head", None) is not None:
        loss = model(pixel_values=made.pixels(), labels=labels).loss  # the head is of no use else
    loss.backward()
    without = [name for name, parameter in model.named_parameters()
               if parameter.grad is None or not parameter.grad.isfinite().all()]
    more = [name for name in without if not name.startswith(made.case.unused or ("-",))]
    assert not more, f"no gradient: {more}"
    for prefix in made.case.unused:
        assert any(name.startswith(prefix) for name in without), f"{prefix} gets a gradient after all"


def any_size_and_one_image(made: Made) -> None:
    """An image of odd sides gives what it gives padded by hand; a batch gives what its images give alone."""
    family = family_of(made.model.config)
    batch = made.pixels(3)
    together = logits_of(made.model, batch)
    close(logits_of(made.model, batch[1:2]), together[1:2])
    if family.input_size(made.model.config):
        return
    for size in ((45, 61), (33, 100), (64, 40)):
        pixels = made.pixels(1, size=size)
        found = logits_of(made.model, pixels)
        assert found.isfinite().all()
        multiple = getattr(made.model, "multiple", None)
        if multiple is None:
            continue
        target = [-(-max(side, made.model.least) // multiple) * multiple for side in size]
        padded = F.pad(pixels, (0, target[1] - size[1], 0, target[0] - size[0]))
        whole = F.interpolate(logits_of(made.model, padded), size=target, mode="bilinear", align_corners=False)
        expected = whole[..., : size[0], : size[1]]
        found = F.interpolate(found, size=size, mode="bilinear", align_corners=False)
        # Logits that are cut, not stretched, see no neighbour beyond the image: the last cells may differ.
        inner = [slice(0, side - multiple) for side in size]
        close(found[..., inner[0], inner[1]], expected[..., inner[0], inner[1]])


def saved_and_loaded(made: Made) -> None:
    """Through transformers' Auto classes: the same names on disk, the same logits."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

    assert AutoConfig.from_pretrained(made.folder).model_type == made.model.config.model_type
    again = AutoModelForSemanticSegmentation.from_pretrained(made.folder, dtype=torch.float32).eval()
    pixels = made.pixels()
    close(logits_of(again, pixels), logits_of(made.model, pixels), 1e-6)
    made.model.save_pretrained(made.folder / "again")
    close(logits_of(AutoModelForSemanticSegmentation.from_pretrained(made.folder / "again").eval(), pixels),
          logits_of(made.model, pixels), 1e-6)
    assert AutoImageProcessor.from_pretrained(made.folder).image_mean


def names_are_stable(made: Made) -> None:
    """What is on disk is read by later versions: a name that changes needs a conversion, and then a new line here."""
    found, stored = names_digest(made.folder), json.loads(STORED.read_text())[made.case.key(made.name)]
    assert found == stored, f"{made.name} has {found}, and {stored} is stored"


def classes_are_kept_by_name(made: Made) -> None:
    labels = LabelSchema.from_names(["sky", "tree", "road", "car"])
    model, _ = load_model(str(made.folder), labels)
    assert sorted(model.load_report.kept_classes) == ["car", "road", "tree"]
    found, expected = (logits_of(one, made.pixels()) for one in (model, made.model))
    close(found[:, [2, 3, 1]], expected)
    assert found.shape[1] == 4
    same, _ = load_model(str(made.folder), LabelSchema.from_names(["tree", "road", "car"]))
    assert same.load_report.new == []
    close(logits_of(same, made.pixels()), expected[:, [2, 0, 1]])


def other_bands(made: Made) -> None:
    """A grey picture in every band gives what it gave in three; the adapted network is saved and loaded."""
    grey = made.pixels(1, channels=1)
    expected = logits_of(made.model, grey.expand(-1, 3, -1, -1))
    for channels in (1, 4, 5):
        model, processor = load_model(str(made.folder), channels=channels)
        close(logits_of(model, grey.expand(-1, channels, -1, -1)), expected, 1e-3)
        assert len(processor.image_mean) == len(processor.image_std) == channels
    model.save_pretrained(made.folder / "bands")
    processor.save_pretrained(made.folder / "bands")
    again, _ = load_for_inference(str(made.folder / "bands"))
    pixels = made.pixels(1, channels=5)
    close(logits_of(again, pixels), logits_of(model, pixels), 1e-6)


def one_batch_is_learnt(made: Made) -> None:
    torch.manual_seed(0)
    model = made.trained()
    pixels = made.pixels()
    labels = (torch.arange(made.size[1]) * 2 // made.size[1]).expand(2, *made.size)  # the left half, the right half
    pixels = pixels + 2 * labels[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=made.case.rate)
    losses = []
    for _ in range(made.case.steps):
        logits = model(pixel_values=pixels).logits
        loss = F.cross_entropy(F.interpolate(logits, size=made.size, mode="bilinear"), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


def exported(made: Made) -> None:
    pixels = made.pixels()
    if made.case.no_export:
        with pytest.raises(Exception, match=made.case.no_export):
            torch.export.export(made.model, (), {"pixel_values": pixels}, strict=False)
        return
    program = torch.export.export(made.model, (), {"pixel_values": pixels}, strict=False)
    with torch.no_grad():
        close(program.module()(pixel_values=pixels).logits, logits_of(made.model, pixels), 1e-5)


CHECKS = (every_parameter_gets_a_gradient, any_size_and_one_image, saved_and_loaded, names_are_stable,
          classes_are_kept_by_name, other_bands, one_batch_is_learnt, exported)
