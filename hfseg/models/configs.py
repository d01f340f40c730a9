"""Where a model's name leads, and the configuration that lies there."""

from __future__ import annotations

import difflib
import socket
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx2
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, SegformerConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hfseg.errors import UserError, one_of
from hfseg.hub_errors import explain, status_of
from hfseg.models.backbones import HOSTS, backbone_config
from hfseg.models.families import FAMILIES, Family
from hfseg.models.networks import ARCHITECTURES, PREFIX, architecture_of, register
from hfseg.models.networks.smp_checkpoints import is_smp, smp_config
from hfseg.models.quiet import quiet_transformers
from hfseg.remap import unique

SHIPPED = Path(__file__).resolve().parent.parent / "pretrained"
# Configurations of the Mix Transformers, so that `--model.weights random` needs no network.
_MIT = {
    "b0": ([32, 64, 160, 256], [2, 2, 2, 2], 256),
    "b1": ([64, 128, 320, 512], [2, 2, 2, 2], 256),
    "b2": ([64, 128, 320, 512], [3, 4, 6, 3], 768),
    "b3": ([64, 128, 320, 512], [3, 4, 18, 3], 768),
    "b4": ([64, 128, 320, 512], [3, 8, 27, 3], 768),
    "b5": ([64, 128, 320, 512], [3, 6, 40, 3], 768),
}
# What a family needs beyond the defaults of transformers.
_DEFAULTS = {"beit": {"out_indices": [3, 5, 7, 11]}}
_DERIVED = {"out_features", "out_indices", "stage_names"}
_DEPTH = {"num_hidden_layers", "depths", *_DERIVED}
KNOWN_CONFIGS = {
    f"nvidia/mit-{size}": {"hidden_sizes": widths, "depths": depths, "decoder_hidden_size": decoder}
    for size, (widths, depths, decoder) in _MIT.items()
}


def resolve_name(name: str) -> str:
    """Returns where a model name lies: the shipped folder, the local folder, or the name itself.

    Args:
        name: What the user gave.

    Returns:
        A path for shipped and local models, else `name`.

    Raises:
        UserError: When it looks like a path and nothing is there.
    """
    if name.startswith("hfseg/"):
        folder = SHIPPED / name.removeprefix("hfseg/")
        if folder.is_dir():
            return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{name} holds no config.json", "a folder written by save_pretrained or hfseg train")
        return str(path)
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise UserError(f"there is no folder {name}", "a folder with config.json, or a hub id user/name")
    return name


@contextmanager
def readable_errors(name: str, training: bool = False):
    """Turns what transformers and the hub raise for a missing or wrong repository into one message.

    Args:
        name: What the user gave.
        training: Whether a network with random weights would serve, too.

    Raises:
        UserError: In place of these errors.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError, httpx2.HTTPError) as error:
        text = str(error).strip().splitlines()
        first = text[0] if text else type(error).__name__
        if Path(name).is_dir() and "safetensors" in str(error) and any(Path(name).glob("*.bin")):
            raise UserError(f"{name} has its weights in pickled files (.bin), which can run code when they are read",
                            "model.safetensors", "if you trust them: python -c 'from transformers import "
                            f"AutoModelForSemanticSegmentation as M; M.from_pretrained(\"{name}\", "
                            f"use_safetensors=False).save_pretrained(\"{name}\")'") from error
        if Path(name).is_dir():
            raise UserError(f"cannot load {name}: {first[:300]}", "a folder that save_pretrained wrote whole",
                            "copy or train it again") from error
        about = error  # transformers wraps what the hub's client raised
        while about.__cause__ is not None and status_of(about) is None:
            about = about.__cause__
        if status_of(about) in (401, 403, 429) or isinstance(about, (GatedRepoError, RevisionNotFoundError)):
            raise explain(about, name) from error
        known = [*FAMILIES, *KNOWN_CONFIGS, "hfseg/shapes-segformer", *(PREFIX + one for one in ARCHITECTURES)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if near and near[0] != name:
            raise UserError(f"cannot load {name}: {first[:300]}", fix=f"did you mean {near[0]}?") from error
        fix = "check the name and the network (HF_HUB_OFFLINE and HF_ENDPOINT matter), or pass a local folder"
        if training:
            random = "--model.weights random" if name in KNOWN_CONFIGS else "--model.name segformer"
            fix += f"; {random} trains from random weights without a network"
        raise UserError(
            f"{name} is no folder here (tried {Path(name).absolute()}), and the hub gives: {first[:300]}",
            "a folder, or a hub id that this machine can reach or has cached", fix,
        ) from error


def refuse_unreachable(name: str) -> None:
    """Says at once that the hub cannot be reached, where only the hub can help: its client would try for a minute.

    Args:
        name: What lies on the hub.

    Raises:
        OSError: When nothing of it is cached and no connection to the hub can be made.
    """
    if Path(name).is_dir() or constants.HF_HUB_OFFLINE or getproxies():
        return
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or (443 if hub.scheme == "https" else 80)), 5).close()
    except OSError as error:
        raise OSError(f"{constants.ENDPOINT} cannot be reached ({error.strerror or error})") from error


@quiet_transformers(progress=True)  # it warns of backbones that its networks take very well
def load_config(name: str, source: str, weights: str, overrides: dict, hub: dict, training: bool = True,
                backbone: str | None = None):  # fmt: skip
    """Returns the configuration of a model, with its classes as ids 0 to n - 1 and different names.

    Args:
        name: What the user gave.
        source: What `resolve_name` made of it.
        weights: `pretrained` or `random`.
        overrides: Fields to replace.
        hub: Revision, token and trust for the hub.
        training: Whether a network with random weights would serve, too.
        backbone: By name, for hfseg's own networks and those of transformers that take any.

    Returns:
        A transformers configuration.

    Raises:
        UserError: When there is none, or it cannot be built.
    """
    register()
    own = architecture_of(source)
    if backbone and not own and source not in HOSTS:
        names = [*(PREFIX + one for one in ARCHITECTURES), *HOSTS]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
        raise UserError(f"{name} takes no backbone by name", ", ".join(names),
                        f"did you mean {near[0]}?" if near else "leave model.backbone out")
    if own:
        config = own.config(**{**own.fields, "backbone": backbone or own.backbone})
    elif source in CONFIG_MAPPING and source in FAMILIES:
        fields = dict(_DEFAULTS.get(source, {}))
        if backbone:
            with readable_errors(backbone, training):
                fields["backbone_config"] = backbone_config(backbone, hub)
        config = CONFIG_MAPPING[source](**fields)
    elif weights == "random" and source in KNOWN_CONFIGS:
        config = SegformerConfig(**KNOWN_CONFIGS[source])
    else:
        with readable_errors(name, training):
            refuse_unreachable(source)
            content, _ = PreTrainedConfig.get_config_dict(source, revision=hub["revision"], token=hub["token"])
            config = smp_config(content) if is_smp(content) else AutoConfig.from_pretrained(source, **hub)
    if overrides:
        fields = config.to_dict()
        for key in overrides:
            one_of(key, fields, f"field of model.config for {config.model_type}")
        # Derived from each other and from the depth: what the user did not name follows from what they did.
        if _DEPTH & set(overrides):
            for key in _DERIVED - set(overrides):
                fields.pop(key, None)
            if source in CONFIG_MAPPING:
                fields = {**_DEFAULTS.get(source, {}), **fields}
        with config_errors(name):
            config = type(config).from_dict({**fields, **overrides})
    names = getattr(config, "id2label", None) or {}
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{name} names the classes {', '.join(map(str, sorted(names)[:20]))} in config.id2label",
                        f"the ids 0 to {len(names) - 1}", "mend id2label and label2id in its config.json")
    config.id2label = dict(enumerate(unique(str(names[i]) for i in range(len(names)))))
    config.label2id = {label: i for i, label in config.id2label.items()}
    return config


@contextmanager
def config_errors(name: str):
    """Turns what a network raises for a configuration that cannot be built into one message.

    Args:
        name: What the user gave.

    Raises:
        UserError: In place of these errors.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the network's own code meets
        raise UserError(f"{name} cannot be built with this model.config: {type(error).__name__}: "
                        f"{' '.join(str(error).split())[:300]}", "a configuration that can be built",
                        "mend the model.config overrides, or leave them out") from error


def auto_class(family: Family) -> type:
    """Returns the Auto class of transformers that makes the networks of a family.

    Args:
        family: Its record.

    Returns:
        Such as `AutoModelForSemanticSegmentation`.
    """
    return getattr(transformers, f"AutoModelFor{family.auto}Segmentation")
