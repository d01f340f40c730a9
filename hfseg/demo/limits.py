"""What the page refuses, and how it says so."""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr
import numpy as np
from PIL import Image

from hfseg.errors import UserError
from hfseg.inference.reading import read_image

MAX_FILE_SIZE = "20mb"
MAX_PIXELS = 24_000_000  # of an upload: a small file may unpack to a huge image
WAITING = 60  # visitors in the queue; further ones are told to come back
KEPT_SECONDS = 3600  # uploads and results stay on disk for so long
SESSIONS = 200  # visitors whose state is kept

# What is opened as a picture. Others make PIL start programs (EPS), or are no photos.
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_ARRAYS = (b"\x93NUMPY", b"II*\0", b"MM\0*", b"II+\0")


def read_upload(path: str | None, channels: int = 3) -> np.ndarray:
    """Reads an uploaded image, after a look at its header.

    Args:
        path: A file of this machine; a forged request may hold anything else, which is not visited.
        channels: Number of channels wanted.

    Returns:
        (H, W, channels) as `decode_image` gives it: first frame, upright, on white.

    Raises:
        UserError: When it is no image, broken, or has too many pixels.
    """
    if not isinstance(path, str) or not os.path.isfile(path):
        raise UserError("there is no image yet", "a photo", "choose one, paste one, or try an example")
    check_size(path)
    return read_image(path, channels)


def check_size(path: str) -> None:
    """Refuses, by its header alone, what would unpack to too much.

    Args:
        path: The file.

    Raises:
        UserError: For an image of too many pixels, or a kind of file that is not opened.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    pixels, kind = 0, None
    try:
        if start.startswith(_ARRAYS[0]):
            pixels, kind = np.load(path, mmap_mode="r", allow_pickle=False).size // 3, "npy"
        elif start.startswith(_ARRAYS[1:]):
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                pixels, kind = math.prod(tiff.series[0].shape) // max(1, min(3, tiff.pages[0].samplesperpixel)), "TIFF"
        else:
            with Image.open(path) as image:
                pixels, kind = math.prod(image.size), image.format
    except Image.DecompressionBombError:
        pixels = MAX_PIXELS + 1
    except Exception:  # who reads it says what is wrong with it
        return
    if pixels > MAX_PIXELS:
        most = MAX_PIXELS // 1_000_000
        raise UserError(f"the image has more than {most} million pixels", f"up to {most} million",
                        "make it smaller, or use `hfseg predict --tile 512` for large images")
    if kind not in (*FORMATS, "npy"):
        raise UserError(f"{kind} is not opened here", "JPEG, PNG, WebP, TIFF...", "save it as one of these")


@contextmanager
def told(*files: str | None) -> Iterator[None]:
    """Shows what a visitor can mend as a message, without the paths of this machine.

    Args:
        files: What the visitor sent; called "this file" in the message.

    Raises:
        gr.Error: In place of a `UserError`. Gradio takes its text for HTML, so that is escaped.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for name in (part for file in files if file for part in (str(file), os.path.basename(str(file)))):
            text = text.replace(name, "this file")
        text = re.sub(r"^  (allowed|to mend): ", lambda found: f"{found[1].capitalize()}: ", text, flags=re.MULTILINE)
        text = html.escape(text[:1].upper() + text[1:]).replace("\n", "<br>")
        raise gr.Error(text, title="That did not work", print_exception=False) from error
