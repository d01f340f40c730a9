"""What became of the tensors of a checkpoint, for people."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """What became of the tensors of a checkpoint.

    Attributes:
        name: Where the checkpoint came from.
        loaded: How many tensors of the network were read from it.
        new: Names of tensors that start from random values.
        dropped: Names of tensors of the checkpoint that the network has no place for.
        kept_classes: Classes whose weights were kept because the checkpoint knows them by name.
        notes: Everything else a user should know, a sentence each.
        backbone_weights: In words, the weights that a backbone under a new head started from.
    """

    name: str
    loaded: int = 0
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept_classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    backbone_weights: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.loaded} tensors loaded, {len(self.new)} new, {len(self.dropped)} dropped"]
        lines += [f"  new:     {modules_of(self.new)}"] if self.new and self.loaded else []
        lines += [f"  dropped: {modules_of(self.dropped)}"] if self.dropped else []
        lines += [f"  kept by name: {', '.join(self.kept_classes)}"] if self.kept_classes else []
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def modules_of(names: list[str]) -> str:
    """Gives tensor names as their modules, a few of them.

    Args:
        names: Of tensors.

    Returns:
        Words.

    Example:
        >>> modules_of(["head.weight", "head.bias", "neck.weight"])
        'head, neck'
    """
    modules = list(dict.fromkeys(name.rsplit(".", 1)[0] for name in names))
    return ", ".join(modules[:6]) + (f" and {len(modules) - 6} more" if len(modules) > 6 else "")
