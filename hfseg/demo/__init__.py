"""A page that segments images in a browser: upload, one forward pass, classes, areas, and the map to take away."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from hfseg.drawing import to_rgb
from hfseg.errors import UserError
from hfseg.remap import hex_colour
from hfseg.result import Segmentation, index_image
from hfseg.segmenter import Segmenter

if TYPE_CHECKING:
    import gradio as gr

MAX_PIXELS = 50_000_000  # of an upload: a small file may unpack to a huge image
MAX_FILE_SIZE = "20mb"
WAITING = 20  # visitors in the queue; further ones are told to come back
LOADED = 2  # models that are kept in memory
OPACITY = 0.6  # of the classes over the image
KEPT_SECONDS = 3600  # uploads and results stay on disk for so long


def build_demo(models: str | Sequence[str]) -> gr.Blocks:
    """Builds the page; `launch` it with the settings of `launch_settings`, or call `launch`.

    Args:
        models: Run directories, folders or hub ids. The first one is loaded now, others when they are chosen.

    Returns:
        The page. Its one function, `/segment`, takes an image and the model's name, and gives the classes as
        gradio's annotated image, a table of areas and the file of the semantic map; `gradio_client` can call it.

    Raises:
        UserError: When gradio is not installed, or a model cannot be loaded.

    Example:
        >>> type(build_demo("hfseg/shapes-segformer")).__name__
        'Blocks'
    """
    gr = _gradio()
    names = [models] if isinstance(models, (str, os.PathLike)) else list(models)
    names = [os.fspath(name) for name in names]
    if not names:
        raise UserError("no model to show", "a run directory, a folder or a hub id")
    load = lru_cache(maxsize=LOADED)(Segmenter.from_pretrained)
    first = load(names[0])

    def segment(image: str | None, model: str) -> tuple:
        """Finds the class of every pixel of an image.

        Args:
            image: A file: JPEG, PNG, TIFF, WebP...
            model: One of the page's models.

        Returns:
            The image with its classes, a table of class, share and pixels, and the semantic map as a PNG whose
            values are class ids.
        """
        if not image or not os.path.isfile(image):  # a forged request may hold an address, which nobody asked to visit
            raise gr.Error("Choose an image first.", print_exception=False)
        with _told(gr, image):
            _check_size(image)
            result = find(model)(image)
        areas = result.areas()
        masks = [(result.mask(name) * OPACITY, name) for name in areas]
        table = [[name, f"{100 * area['share']:.2f} %", int(area["pixels"])] for name, area in areas.items()]
        return (to_rgb(result.image), masks), table, _save(result, download.GRADIO_CACHE)

    def recolour(model: str) -> Any:
        """Takes the colours of a model that was chosen."""
        with _told(gr):
            return gr.AnnotatedImage(color_map=_colours(find(model)))

    def find(model: str) -> Segmenter:
        if model not in names:
            raise UserError(f"this page has no model {model!r}", ", ".join(names))
        return load(model)

    with gr.Blocks(title="hfseg", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown("# Segment an image\nEvery pixel gets a class. Hover over a class to see it alone.")
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"],
                                 height=360, elem_id="image")
                image.preprocess = _as_it_is
                model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                gr.Markdown(_classes_line(first))
            with gr.Column(scale=3):
                shown = gr.AnnotatedImage(label="Classes", color_map=_colours(first), elem_id="classes", height=420)
                table = gr.Dataframe(headers=["class", "share", "pixels"], datatype=["str", "str", "number"],
                                     label="Areas", interactive=False, elem_id="areas")
                download = gr.DownloadButton("Download the map (PNG of class ids)", elem_id="map")
        # One call at a time: the cores are the model's, and two calls would both take longer.
        gr.on([button.click, image.upload], segment, [image, model], [shown, table, download], api_name="segment",
              concurrency_limit=1, concurrency_id="model")
        model.change(recolour, model, shown, concurrency_id="model", api_visibility="private")
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def launch(models: str | Sequence[str], **settings: Any) -> None:
    """Builds the page and serves it until it is stopped.

    Args:
        models: As for `build_demo`.
        **settings: Of gradio's `launch`, such as `server_port`.

    Raises:
        UserError: As `build_demo` does.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported
    build_demo(models).launch(**(launch_settings() | settings))


def launch_settings() -> dict[str, Any]:
    """Returns what the page wants of gradio's `launch`.

    Returns:
        Its arguments.
    """
    return {"max_file_size": MAX_FILE_SIZE, "footer_links": ["api"], "ssr_mode": False,
            "state_session_capacity": 100, "share": False}  # fmt: skip


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"gradio cannot be imported: {error}", "gradio 6 or newer",
                        "pip install 'hfseg[demo]'") from error
    return gradio


@contextmanager
def _told(gr: Any, file: str = "") -> Iterator[None]:
    """Shows what a visitor can mend, without the paths of this machine; gradio takes the text for HTML."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for name in filter(None, (file, os.path.basename(file))):
            text = text.replace(name, "this file")
        raise gr.Error(html.escape(text).replace("\n", "<br>"), print_exception=False) from error


def _as_it_is(payload: Any) -> str | None:
    """Takes the uploaded file itself: gradio would clip 16 bits, and fail on some files before anybody said why."""
    return payload.path if payload else None


def _colours(segmenter: Segmenter) -> dict[str, str]:
    return {name: hex_colour(segmenter.palette[i]) for i, name in reversed(segmenter.id2label.items())}


def _check_size(file: str) -> None:
    """Reads the header alone."""
    try:
        with Image.open(file) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        width = height = MAX_PIXELS
    except Exception:  # the segmenter reads more kinds of files than PIL, and says what is wrong with others
        return
    if width * height > MAX_PIXELS:
        raise UserError(f"the image has more than {MAX_PIXELS // 1_000_000} million pixels",
                        f"up to {MAX_PIXELS // 1_000_000} million", "make it smaller, or run `hfseg predict --tile`")


def _save(result: Segmentation, folder: str) -> str:
    """Writes the map into gradio's cache, which it empties by itself."""
    from gradio.processing_utils import save_bytes_to_cache

    buffer = io.BytesIO()
    index_image(result.semantic_map, result.palette).save(buffer, format="png")
    return save_bytes_to_cache(buffer.getvalue(), "semantic_map.png", folder)


def _classes_line(segmenter: Segmenter) -> str:
    """Names come from strangers' configurations: as code they mean nothing to Markdown."""
    names = ["`" + " ".join(name.replace("`", "'").split()) + "`" for name in segmenter.id2label.values()]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{len(names)} classes: {', '.join(names[:12])}{more}"
