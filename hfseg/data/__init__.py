"""Data: sources, the canonical columns, embedded scenes and augmentation."""

from importlib import import_module

_NAMES = {
    "load_data": "sources",
    "SegmentationData": "sources",
    "StreamingSegmentationData": "sources",
    "Sample": "images",
    "decode_image": "images",
    "decode_map": "images",
    "read_row": "images",
    "load_recipe_data": "from_recipe",
    "inspect_data": "inspect",
    "write_recipe": "inspect",
}
__all__ = list(_NAMES)


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
