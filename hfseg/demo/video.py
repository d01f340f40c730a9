"""Videos and webcam frames: the same segmenter, picture by picture, up to a stated number of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from hfseg.errors import UserError
from hfseg.segmenter import Segmenter

MOST_FRAMES = 240
FRAME_SIDE = 640  # pixels of a frame's longer side, as it is segmented and written
MOST_VIDEO_PIXELS = 16_000_000  # of a frame, before it is made smaller
WEBCAM_SIDE, WEBCAM_SECONDS, WEBCAM_EVERY = 480, 60, 0.5
OPACITY = 0.55


def segment_video(
    path: str | None, segmenter: Segmenter, step: int = 1, report: Callable[[int, int], None] = lambda done, all: None
) -> tuple[str, dict[str, Any]]:
    """Writes the video and its overlay side by side, as H.264 that browsers play.

    Args:
        path: The video.
        segmenter: The model.
        step: Every how many frames one is taken.
        report: Called with the frames done and those to do.

    Returns:
        The file (MP4), and `frames`, `fps`, `seconds`, whether it was `cut` at the cap, and the mean share of each
        class in percent, as `classes`.

    Raises:
        UserError: When it is no video, or its frames are too large.
    """
    import av

    if not isinstance(path, str) or not os.path.isfile(path):
        raise UserError("there is no video yet", "a video", "choose one")
    if not isinstance(step, int) or isinstance(step, bool) or not 1 <= step <= 60:
        raise UserError(f"every {str(step)[:20]} frames", "1 to 60")
    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    target = Path(tempfile.mkdtemp(dir=get_upload_folder())) / "segmented.mp4"
    shares: dict[str, float] = {}
    done, cut = 0, False
    try:
        with av.open(path, options={"protocol_whitelist": "file"}) as source, av.open(str(target), "w") as out:
            if not source.streams.video:
                raise UserError("the file holds no video", "MP4, WebM, MOV...")
            track = source.streams.video[0]
            if track.width * track.height > MOST_VIDEO_PIXELS:
                raise UserError(f"its frames have {track.width} x {track.height} pixels",
                                f"up to {MOST_VIDEO_PIXELS // 1_000_000} million")
            rate = Fraction(track.average_rate or 25) / step
            rate = min(max(rate, Fraction(1, 10)), Fraction(120)).limit_denominator(1000)
            expected = min(MOST_FRAMES, -(-track.frames // step) if track.frames else MOST_FRAMES)
            written = None
            for frame in _every(source.decode(track), step):
                if done == MOST_FRAMES:
                    cut = True
                    break
                picture = fitted(frame.to_image(), FRAME_SIDE)
                result = segmenter(np.asarray(picture))
                pair = np.hstack([np.asarray(picture), np.asarray(result.overlay(OPACITY))])
                if written is None:
                    written = out.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "21"})
                    written.width, written.height, written.pix_fmt = pair.shape[1], pair.shape[0], "yuv420p"
                if pair.shape[:2] != (written.height, written.width):
                    raise UserError("the size of its frames changes", "frames of one size")
                out.mux(written.encode(av.VideoFrame.from_ndarray(pair, "rgb24")))
                for name, area in result.areas().items():
                    shares[name] = shares.get(name, 0.0) + area["share"]
                done += 1
                report(done, max(done, expected))
            if written is None:
                raise UserError("the video has no frame", "at least one")
            out.mux(written.encode())
    except av.FFmpegError as error:
        raise UserError(f"this is no video, or it is broken ({error.strerror or error})", "MP4, WebM, MOV...",
                        "save it again") from error
    classes = sorted(((name, round(100 * share / done, 2)) for name, share in shares.items()), key=lambda one: -one[1])
    return str(target), {"frames": done, "fps": round(float(rate), 3), "seconds": round(float(done / rate), 2),
                         "cut": cut, "classes": classes}  # fmt: skip


def segment_frame(frame: np.ndarray, segmenter: Segmenter) -> np.ndarray:
    """Lays the classes over a webcam's frame.

    Args:
        frame: (H, W, 3) uint8.
        segmenter: The model.

    Returns:
        (h, w, 3), made smaller where it was large.
    """
    picture = fitted(Image.fromarray(frame).convert("RGB"), WEBCAM_SIDE)
    return np.asarray(segmenter(np.asarray(picture)).overlay(OPACITY))


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Makes a picture no longer than a side, and its width and height even, as H.264 needs.

    Args:
        picture: RGB.
        side: In pixels.

    Returns:
        The picture.

    Example:
        >>> fitted(Image.new("RGB", (1281, 720)), 640).size
        (640, 360)
    """
    scale = min(1.0, side / max(picture.size))
    size = tuple(max(2, round(length * scale) // 2 * 2) for length in picture.size)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)


def _every(frames: Iterator[Any], step: int) -> Iterator[Any]:
    for number, frame in enumerate(frames):
        if number % step == 0:
            yield frame
