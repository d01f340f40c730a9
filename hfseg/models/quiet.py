"""Silence while transformers loads or saves: what matters of it is reported, or refused, by hfseg itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers(progress: bool = False) -> Iterator[None]:
    """Switches off transformers' warnings and progress bars, and puts them back as they were.

    Args:
        progress: Whether to keep the bars, for what may be downloaded.

    Example:
        >>> with quiet_transformers():
        ...     transformers_logging.is_progress_bar_enabled()
        False
    """
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    if bars and not progress:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars and not progress:
            transformers_logging.enable_progress_bar()
