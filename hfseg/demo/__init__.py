"""A page that segments images in a browser: photos, videos, a webcam; looked at, compared, corrected, exported."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hfseg.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

KEEP_ALIVE = 120  # seconds


def build_demo(models: str | os.PathLike | Sequence[str | os.PathLike] | None = None) -> gr.Blocks:
    """Builds the page; `launch` it with the settings of `launch_settings`, or call `launch`.

    Args:
        models: Run directories, folders or hub ids; segmentation models, and promptable ones such as SAM 2. The first
            one is loaded now, in the background, others when they are chosen. None takes the newest run of the
            quickstart, or else the model that hfseg ships.

    Returns:
        The page. Its functions can be called by `gradio_client`, too: `/segment`, `/export`, `/video`...

    Raises:
        UserError: When gradio is not installed, or a model's configuration cannot be read.

    Example:
        >>> type(build_demo("hfseg/shapes-segformer")).__name__
        'Blocks'
    """
    _check_gradio()
    from hfseg.demo.models import Models, default_model
    from hfseg.demo.page import build_page

    if models is None:
        models = default_model()
    return build_page(Models([models] if isinstance(models, (str, os.PathLike)) else list(models)))


def launch(models: str | os.PathLike | Sequence[str | os.PathLike] | None = None, **settings: Any) -> None:
    """Builds the page and serves it until it is stopped.

    Args:
        models: As for `build_demo`.
        **settings: Of gradio's `launch`, such as `server_port`.

    Raises:
        UserError: As `build_demo` does, or when the port is taken.
    """
    page, url = start(models, **settings)
    print(f"The page is at {url} (Ctrl-C stops it)", flush=True)
    page.block_thread()


def start(models: str | os.PathLike | Sequence[str | os.PathLike] | None = None, **settings: Any) -> tuple[Any, str]:
    """Builds the page and serves it in the background.

    Args:
        models: As for `build_demo`.
        **settings: Of gradio's `launch`, such as `server_port`; 0 takes any free one.

    Returns:
        The page, whose `close` ends it, and its address.

    Raises:
        UserError: As `build_demo` does, or when the port is taken.
    """
    page = build_demo(models)
    settings = {**launch_settings(), "quiet": True, **settings, "prevent_thread_lock": True}
    if settings.get("server_port") == 0:
        with socket.create_server(("127.0.0.1", 0)) as free:
            settings["server_port"] = free.getsockname()[1]
    try:
        _, url, _ = page.launch(**settings)
    except OSError as error:
        if "port" not in str(error):
            raise
        raise UserError(str(error).splitlines()[0], "a free port", "--port 0 takes one") from error
    # By default a connection is dropped after 5 seconds without a request, also while a busy server has yet to read it.
    page.server.config.timeout_keep_alive = KEEP_ALIVE
    return page, url


def launch_settings() -> dict[str, Any]:
    """Returns what the page wants of gradio's `launch`.

    Returns:
        Its arguments.
    """
    from hfseg.demo.limits import MAX_FILE_SIZE, SESSIONS
    from hfseg.demo.page import page_style

    return {"max_file_size": MAX_FILE_SIZE, "footer_links": ["api"], "ssr_mode": False, "share": False,
            "state_session_capacity": SESSIONS, "max_threads": 80, **page_style()}  # fmt: skip


def _check_gradio() -> None:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # gradio reads it when it is imported
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f"gradio cannot be imported: {error}", "gradio 6 or newer",
                        "pip install 'hfseg[demo]'") from error
