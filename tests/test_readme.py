"""What the README says is true: its Python runs, its commands are read, its tables name what exists."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfseg.cli import COMMANDS, split_config
from hfseg.data.augment import PRESETS
from hfseg.losses import LOSSES
from hfseg.models import FAMILIES
from hfseg.models.configs import SHIPPED
from hfseg.recipe_reading import load_recipe, shipped_recipes
from hfseg.transfer import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(sum(language == "python" for language, _ in BLOCKS)))
def test_python_blocks_run(number, tmp_path, monkeypatch, online):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED / "shapes-segformer", "runs/mine")
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save("photo.jpg")
    exec(compile([text for language, text in BLOCKS if language == "python"][number], "README.md", "exec"), {})


def test_commands_exist_and_their_flags_are_fields_of_the_recipe():
    shell = "".join(text for language, text in BLOCKS if language == "bash")
    lines = [line.split("#")[0].strip() for line in shell.splitlines()]
    commands = [shlex.split(line.split("hfseg ", 1)[1].split(" > ")[0]) for line in lines if "hfseg " in line]
    assert len(commands) > 6
    for command, *arguments in commands:
        assert command in COMMANDS
        if command == "train":
            _, flags = split_config(arguments)
            load_recipe(overrides=flags)
    targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= set(targets)


def test_yaml_blocks_are_recipes(tmp_path):
    for language, text in BLOCKS:
        if language == "yaml":
            (tmp_path / "recipe.yaml").write_text(text)
            load_recipe(str(tmp_path / "recipe.yaml"))


def test_what_exists_is_named():
    for name in (*shipped_recipes(), *PRESETS, *LOSSES, *STRATEGIES):
        assert f"`{name}`" in README or re.search(rf"\b{name}\b", README), name
    plain = re.sub(r"[^a-z0-9]", "", README.lower())
    for family in FAMILIES:
        assert re.sub(r"[^a-z0-9]", "", family) in plain, family
