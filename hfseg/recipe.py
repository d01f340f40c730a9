"""The recipe of a run: every choice, typed, with its default, in one YAML file.

The attribute docstrings below are also the help of the command line.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

Size = Union[int, tuple[int, int], None]


@dataclass
class ModelConfig:
    """Which network, and which weights."""

    name: str = "nvidia/mit-b0"
    """Hub id, folder, `hfseg/shapes-segformer` (shipped with the package), one of hfseg's own networks such as
    `hfseg/unet`, or a transformers model type such as `segformer`, which starts from random weights."""
    backbone: Optional[str] = None
    """Backbone of one of hfseg's own networks, such as `resnet18`, or any model of timm; of `upernet`, `mask2former`,
    `maskformer` and `detr`, too, or a checkpoint of transformers, such as `facebook/dinov2-small`."""
    backbone_weights: Optional[str] = None
    """File with weights of the backbone (safetensors, or a state dict of torch), in place of those of its hub."""
    revision: Optional[str] = None
    """Branch, tag or commit on the hub."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the same network without its weights."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's configuration to override, such as `{hidden_sizes: [16, 32, 80, 128]}`."""
    fuse: bool = True
    """Compute the same function with less work, where `hfseg.fuse` knows how; the saved weights are the same."""
    trust_remote_code: bool = False
    """Run code that lies in the model's repository. Leave it off unless you have read that code."""


@dataclass
class LabelsConfig:
    """How stored label values become class ids. All empty: found from the data, and stated."""

    names: Optional[list[str]] = None
    """Class names in the order of the stored values."""
    palette: Optional[list[tuple[int, int, int]]] = None
    """A colour per class; it also decodes RGB masks."""
    ignore_index: Optional[int] = None
    """The stored value that marks unlabelled pixels."""
    reduce_labels: bool = False
    """Stored 0 means unlabelled, and stored k is class k - 1."""
    binary: bool = False
    """Two classes; every stored value above 0 (255, say) is the second."""
    merge: dict[str, list[str]] = field(default_factory=dict)
    """New class from old ones, by name: `{vehicle: [car, truck]}`."""
    drop: list[str] = field(default_factory=list)
    """Classes, by name, that become unlabelled."""

    @property
    def given(self) -> bool:
        """Whether it says what stored values mean."""
        return bool(self.names or self.palette or self.ignore_index is not None or self.reduce_labels or self.binary)


@dataclass
class DataConfig:
    """Which images and label maps."""

    path: str = "shapes"
    """Hub id, folder, or `shapes` (`shapes/source`, `shapes/target`), the embedded data set."""
    name: Optional[str] = None
    """Configuration of a hub data set."""
    revision: Optional[str] = None
    """Branch, tag or commit of a hub data set."""
    streaming: bool = False
    """Read a hub data set without downloading it whole."""
    train_split: Optional[str] = None
    """Split to train on; found if not given."""
    validation_split: Optional[str] = None
    """Split to evaluate on; found if not given."""
    validation_fraction: float = 0.1
    """Share of the training split held out, by `seed`, when there is no validation split."""
    image_column: Optional[str] = None
    """Column of the images; found if not given."""
    label_column: Optional[str] = None
    """Column of the label maps; found if not given."""
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    """How stored label values become class ids."""
    image_size: Size = None
    """Resize images before all else, in training and evaluation: shortest side, or (height, width). Label maps of the
    evaluation stay at their own size."""
    max_train_samples: Optional[int] = None
    """Train on the first n images only."""
    max_eval_samples: Optional[int] = None
    """Evaluate on the first n images only."""
    num_workers: Optional[int] = None
    """Processes that decode and augment; results do not depend on it. Empty: none for training on the CPU; on a GPU
    up to 8, and one less than the cores."""
    cache_gb: Optional[float] = None
    """Keep up to this many gigabytes of decoded images and maps on disk, for later epochs and runs; 0 keeps none.
    Results do not depend on it. Empty: none for training on the CPU, 8 on a GPU."""
    on_bad_sample: Literal["stop", "skip"] = "stop"
    """What to do with an image or map that cannot be used: stop with a message, or skip it and report."""


@dataclass
class AugmentConfig:
    """What is done to a training image and its map, jointly. Fields left empty come from the preset."""

    preset: Literal["none", "light", "segformer", "strong"] = "light"
    """`none`; `light`: a little scale jitter, crop, flip; `segformer`: more of it, and photometric; `strong`: all."""
    crop_size: Size = None
    """Crop to this many pixels, padding where the image is smaller; empty: the image's own size (one size for all),
    or 512."""
    scale: Optional[tuple[float, float]] = None
    """Resize by a random factor in this range, before the crop."""
    max_class_share: Optional[float] = None
    """Draw the crop again, up to ten times, while one class covers more than this share of it."""
    rare_class_crop: Optional[float] = None
    """Probability that the crop is placed around a pixel of a rare class of the image."""
    horizontal_flip: Optional[float] = None
    """Probability of a left-right flip."""
    vertical_flip: Optional[float] = None
    """Probability of an up-down flip."""
    rotation: Optional[float] = None
    """Rotate by up to this many degrees."""
    photometric: Optional[float] = None
    """Strength, 0 to 1, of random brightness, contrast, saturation and hue."""
    blur: Optional[float] = None
    """Probability of a Gaussian blur."""
    sharpen: Optional[float] = None
    """Probability of sharpening."""
    autocontrast: Optional[float] = None
    """Probability of contrast stretching."""
    equalize: Optional[float] = None
    """Probability of histogram equalisation."""
    cutout: Optional[float] = None
    """Probability of erasing a rectangle; its label is ignored."""
    copy_paste: Optional[float] = None
    """Probability of pasting the rare classes of another image."""


@dataclass
class LossConfig:
    """What is minimised."""

    terms: dict[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0})
    """Losses with their weights: cross_entropy, ohem, focal, dice, tversky, lovasz."""
    class_weights: Union[str, list[float], dict[str, float], None] = None
    """Weight per class: a list, a map by name, or `auto` from the frequencies in the training split."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (cross_entropy)."""
    ohem_fraction: float = 0.25
    """Share of the pixels kept, the hardest (ohem)."""
    focal_gamma: float = 2.0
    """Focusing exponent (focal)."""
    tversky_alpha: float = 0.3
    """Weight of false positives (tversky)."""
    tversky_beta: float = 0.7
    """Weight of false negatives (tversky)."""
    binary: bool = False
    """Two classes as one sigmoid on the difference of their logits, instead of a softmax."""
    no_object_weight: Optional[float] = None
    """Weight of "no object" among the classes, in networks that predict masks; empty: the checkpoint's own, mostly
    0.1. These have losses of their own, and the terms above do not apply."""
    num_points: Optional[int] = None
    """Points at which a mask is compared with its target, in networks that sample them; empty: 12544, that is
    112 x 112. Fewer are faster, and enough for small images."""


@dataclass
class TransferConfig:
    """What of the pretrained network is trained."""

    strategy: str = "full"
    """`full`: everything; `feature_extraction`: the head only, backbone frozen with its BatchNorm in eval mode;
    `partial`: the head and the backbone's last stages; `head_then_full`: the head only at first, then everything at
    `train.learning_rate`."""
    stages: int = 1
    """How many of the backbone's last stages train (partial)."""
    head_steps: Optional[int] = None
    """Steps in which the head trains alone (head_then_full); empty: a fifth of the run."""
    head_learning_rate_factor: float = 10.0
    """Learning rate of the head, as a multiple of the backbone's; 1 where all weights are random."""


@dataclass
class TrainConfig:
    """How it is minimised."""

    num_train_epochs: float = 20.0
    """Passes over the training split."""
    max_steps: int = -1
    """Optimizer steps; overrides the epochs when positive."""
    per_device_train_batch_size: int = 8
    """Images per step and process."""
    gradient_accumulation_steps: int = 1
    """Batches added up before an optimizer step."""
    learning_rate: float = 6e-5
    """Peak learning rate of the backbone."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimizer."""
    weight_decay: float = 0.01
    """Decoupled decay in adamw, L2 penalty in adam and sgd; never on norms and biases."""
    l1: float = 0.0
    """L1 penalty on the same weights."""
    momentum: float = 0.9
    """Momentum of sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of adamw and adam."""
    schedule: Literal["poly", "cosine", "linear", "step", "cyclic", "constant"] = "poly"
    """Course of the learning rate after warm-up."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly to its peak."""
    poly_power: float = 1.0
    """Exponent of the poly schedule."""
    step_milestones: tuple[float, ...] = (0.6, 0.85)
    """Shares of the run at which the step schedule divides the rate by ten."""
    cycles: int = 3
    """Number of cosine cycles of the cyclic schedule."""
    max_grad_norm: Optional[float] = 1.0
    """Clip the gradient to this norm."""
    mixed_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the forward pass."""
    channels_last: bool = False
    """Memory layout of images and convolutions."""
    gradient_checkpointing: bool = False
    """Trade time for memory, where the network can."""
    compile: bool = False
    """torch.compile the network."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated and saved; 0 is off."""
    early_stopping: Optional[int] = None
    """Stop after this many evaluations without a better score."""
    overfit: Optional[int] = None
    """Train and evaluate on the first n training images, as a check that everything learns."""
    logging_steps: int = 10
    """Write a line to the log every n steps."""
    save_steps: Optional[int] = None
    """Save resumable state every n steps; empty: at every evaluation."""
    save_total_limit: int = 2
    """Keep this many checkpoints."""
    resume: Union[bool, str] = False
    """Go on from the newest checkpoint in output_dir (`true`), or from this checkpoint folder."""
    trackers: list[str] = field(default_factory=list)
    """Accelerate trackers: tensorboard, trackio, wandb..."""


@dataclass
class EvalConfig:
    """When and how it is evaluated."""

    eval_steps: Optional[int] = None
    """Evaluate every n steps; empty: by epochs."""
    eval_epochs: float = 1.0
    """Evaluate every n epochs."""
    metric: Optional[Literal[
        "mean_iou", "mean_accuracy", "overall_accuracy", "mean_f1", "mean_precision", "loss", "mask_ap", "mask_ap50",
        "boundary_ap", "panoptic_quality", "segmentation_quality", "recognition_quality",
    ]] = None
    """Which score the best weights have most of, or `loss`, of which they have least; empty: `mean_iou`, `mask_ap` or
    `panoptic_quality`, by the task."""
    batch_size: int = 8
    """Images of one size per forward pass."""
    tile: Optional[int] = None
    """Side, in pixels, a multiple of 32, of the overlapping windows in which larger images are computed; kept with the
    weights, for whoever uses them. Networks that predict masks need the size of their training crops."""
    tta: Union[list[Union[float, str]], str] = field(default_factory=list)
    """Test-time augmentation: horizontal_flip, vertical_flip and scales, such as `horizontal_flip,0.75`."""
    max_detections: int = 100
    """Objects of a class in an image that count for average precision, the best ones; 100 is COCO's. More where images
    hold more."""
    samples: int = 6
    """Panels of image, truth and prediction to draw."""


@dataclass
class HubConfig:
    """What is published."""

    push_to_hub: bool = False
    """Push the run to the hub."""
    repo_id: Optional[str] = None
    """user/name of the model on the hub."""
    private: bool = False
    """Create the repository as private."""
    strategy: Literal["best", "end"] = "best"
    """Push the best weights so far at every evaluation, in the background, or only when the run ends."""
    tag: Optional[str] = None
    """Name of a tag to put on the run when it ends."""
    space: bool = False
    """Push a Space of the same name that serves the model in a browser."""


@dataclass
class Recipe:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Which network, and which weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which images and label maps."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to training images."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    transfer: TransferConfig = field(default_factory=TransferConfig)
    """What is trained."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """When and how it is evaluated."""
    hub: HubConfig = field(default_factory=HubConfig)
    """What is published."""
    task: Literal["semantic", "instance", "panoptic"] = "semantic"
    """`semantic`: a class per pixel; `instance`: every object with its mask; `panoptic`: objects told apart, and a
    class for the rest. The last two need data with objects, and a network that predicts masks."""
    output_dir: str = "runs/latest"
    """The run directory."""
    seed: int = 42
    """Seed of everything that is drawn."""


def to_yaml(recipe: Recipe) -> str:
    """Writes a recipe out whole, every default included.

    Args:
        recipe: The recipe.

    Returns:
        YAML that `load_recipe` reads back as the same recipe.

    Example:
        >>> to_yaml(Recipe()).splitlines()[1]
        '  name: nvidia/mit-b0'
    """
    import yaml

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return yaml.safe_dump(plain(dataclasses.asdict(recipe)), sort_keys=False, allow_unicode=True)
