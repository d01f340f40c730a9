"""The page itself: what is where, and what happens on which click."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from hfseg.demo.examples import find_examples
from hfseg.demo.handlers import SIZES, TILES, VIEWS, Handlers
from hfseg.demo.limits import KEPT_SECONDS, MAX_FILE_SIZE, MAX_PIXELS, WAITING
from hfseg.demo.models import Models
from hfseg.demo.video import FRAME_SIDE, MOST_FRAMES, WEBCAM_EVERY, WEBCAM_SECONDS, WEBCAM_SIDE

STATIC = Path(__file__).resolve().parent / "static"
SCRIPTS = ("codec", "layers", "painter", "legend", "objects", "stage", "prompts", "editor", "viewer")
MODEL_QUEUE = {"concurrency_id": "model", "concurrency_limit": 1}  # the cores are the model's: one call at a time


def build_page(models: Models) -> gr.Blocks:
    """Builds the page.

    Args:
        models: What it serves.

    Returns:
        The page, ready to be launched.
    """
    handlers = Handlers(models)
    with gr.Blocks(title="hfseg", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
                   fill_width=True) as page:  # fmt: skip
        with gr.Row(elem_id="masthead"):
            gr.HTML(f"<h1>Mask prediction</h1><p>{promise(models)}</p>", elem_id="title")
            status = state_pill(models)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Image", id="image"):
                chosen = image_tab(handlers)
            if models.names != models.prompted:
                with gr.Tab("Video", id="video"):
                    chosen += video_tab(handlers)
                with gr.Tab("Webcam", id="webcam"):
                    chosen += webcam_tab(handlers)
        timer = gr.Timer(0.7)  # until all that was begun is loaded

        def watch() -> tuple[list[dict[str, str]], gr.Timer]:
            states = _states(models)
            return states, gr.Timer(active=any(one["state"] == "loading" for one in states))

        gr.on([timer.tick, page.load], watch, None, [status, timer], queue=False, show_progress="hidden",
              api_visibility="private")  # fmt: skip
        gr.on([one.change for one in chosen], lambda *names: [models.start(name) for name in names if name] and None,
              chosen, None, queue=False, api_visibility="private", show_progress="hidden"
              ).then(watch, None, [status, timer], queue=False, show_progress="hidden", api_visibility="private")
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def image_tab(handlers: Handlers) -> list[gr.Dropdown]:
    """Lays out the tab for one image.

    Args:
        handlers: What answers.

    Returns:
        The components that choose models.
    """
    models = handlers.models
    names = models.names
    with gr.Row(elem_id="image-tab"):
        with gr.Column(scale=1, min_width=270, elem_id="inputs"):
            image = gr.Image(label="Image", show_label=False, type="filepath", image_mode=None, height=230,
                             sources=["upload", "clipboard", "webcam"], elem_id="photo", buttons=[],
                             placeholder="Drop a photo here, or click to choose one")  # fmt: skip
            image.preprocess = as_it_is
            files = find_examples({models.paths[name]: models.configs[name] for name in models.paths})
            examples = gr.Dataset(components=[gr.Image(type="filepath", render=False)], samples=[[f] for f in files],
                                  label="Examples", elem_id="examples", visible=bool(files), type="index",
                                  samples_per_page=8)  # fmt: skip
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
            other = gr.Dropdown([("none", ""), *names], value="", label="Compare with", visible=len(names) > 1,
                                elem_id="compare")  # fmt: skip
            tasks = models.tasks(names[0])
            task = gr.Radio(list(tasks), value=tasks[0], label="Task", visible=len(tasks) > 1, elem_id="task")
            threshold = gr.Slider(0, 1, value=0.5, step=0.01, label="Least score of an object", elem_id="threshold",
                                  visible=tasks[0] != "semantic")  # fmt: skip
            run = gr.Button("Segment", variant="primary", elem_id="segment")
            with gr.Accordion("Advanced", open=False, elem_id="advanced"):
                tiles = gr.Dropdown(list(TILES), value="automatic", label="Tiles", elem_id="tiles",
                                    info="windows in which large images are computed")  # fmt: skip
                views = gr.CheckboxGroup([(view.replace("_", " "), view) for view in VIEWS], value=[], elem_id="views",
                                         label="Average over views", info="flips and scales; slower")  # fmt: skip
                longest = gr.Dropdown(list(SIZES), value="as it is", label="Longest side", elem_id="longest",
                                      info="pixels that the network is shown")  # fmt: skip
                border = gr.Slider(0.05, 0.95, value=0.5, step=0.01, label="Least probability of a pixel",
                                   elem_id="mask-threshold", info="higher makes objects smaller",
                                   visible=tasks[0] != "semantic")  # fmt: skip
            gr.HTML(f"<p>Up to {MAX_FILE_SIZE.upper().replace('MB', ' MB')} and {MAX_PIXELS // 1_000_000} million "
                    "pixels. Files are deleted after an hour.</p>", elem_classes="limits")  # fmt: skip
        with gr.Column(scale=4, min_width=320, elem_id="output"):
            viewer = make_viewer()
    inputs = [image, model, other, tiles, views, longest, task, threshold, border]
    # One call at a time, and always the last image that was chosen.
    segment = gr.on([run.click, image.input], handlers.segment, inputs, viewer, api_name="segment",
                    js=BEGIN, trigger_mode="always_last", show_progress="hidden", **MODEL_QUEUE)  # fmt: skip
    segment.failure(None, image, None, js=FAILED)
    # Nothing is uploaded, nor a network asked again, where it need not be.
    gr.on([task.input, threshold.release, border.release], handlers.segment, inputs, viewer, js=BEGIN,
          trigger_mode="always_last", show_progress="hidden", api_visibility="private", **MODEL_QUEUE,
          ).failure(None, image, None, js=FAILED)  # fmt: skip

    def offer(name: str) -> tuple[gr.Radio, gr.Slider, gr.Slider]:
        can = models.tasks(name)
        objects = can[0] != "semantic"
        return gr.Radio(list(can), value=can[0], visible=len(can) > 1), gr.Slider(visible=objects), gr.Slider(
            visible=objects)  # fmt: skip

    model.change(offer, model, [task, threshold, border], queue=False, show_progress="hidden",
                 api_visibility="private")  # fmt: skip
    task.change(lambda one: [gr.Slider(visible=one != "semantic")] * 2, task, [threshold, border], queue=False,
                show_progress="hidden", api_visibility="private")  # fmt: skip
    chosen = examples.click(lambda number: files[number], examples, image, api_visibility="private", queue=False,
                            show_progress="hidden")  # fmt: skip
    chosen.then(handlers.segment, inputs, viewer, js=BEGIN, show_progress="hidden", api_visibility="private",
                trigger_mode="always_last", **MODEL_QUEUE).failure(None, image, None, js=FAILED)  # fmt: skip
    export_channel(handlers, viewer)
    prompt_channel(handlers, viewer)
    return [model, other]


def video_tab(handlers: Handlers) -> list[gr.Dropdown]:
    """Lays out the tab for videos.

    Args:
        handlers: What answers.

    Returns:
        The components that choose models.
    """
    names = handlers.models.names
    with gr.Row(elem_id="video-tab"):
        with gr.Column(scale=1, min_width=270):
            video = gr.Video(label="Video", sources=["upload"], height=230, elem_id="video-input", buttons=[])
            video.preprocess = as_it_is
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="video-model")
            every = gr.Slider(1, 30, value=1, step=1, label="Every n-th frame", elem_id="video-every")
            run = gr.Button("Segment the video", variant="primary", elem_id="video-segment")
            gr.HTML(f"<p>The first {MOST_FRAMES} frames, at most {FRAME_SIDE} pixels long. Sound is left out.</p>",
                    elem_classes="limits")  # fmt: skip
        with gr.Column(scale=4, min_width=320):
            result = gr.Video(label="Video and classes", interactive=False, autoplay=True, elem_id="video-result",
                              height=460, buttons=["download"])  # fmt: skip
            facts = gr.Textbox(label="Result", interactive=False, elem_id="video-facts", lines=1, max_lines=3)

    def process(video: str | None, model: str, every: float, progress=gr.Progress()) -> tuple[str, str]:  # noqa: B008
        return handlers.video(video, model, every, lambda done, all: progress((done, all), unit="frames"))

    process.__doc__ = handlers.video.__doc__
    run.click(process, [video, model, every], [result, facts], api_name="video", show_progress_on=[result],
              **MODEL_QUEUE)  # fmt: skip
    return [model]


def webcam_tab(handlers: Handlers) -> list[gr.Dropdown]:
    """Lays out the tab for a webcam.

    Args:
        handlers: What answers.

    Returns:
        The components that choose models.
    """
    names = handlers.models.names
    with gr.Row(elem_id="webcam-tab"):
        with gr.Column(scale=1, min_width=270):
            camera = gr.Image(sources=["webcam"], streaming=True, type="numpy", label="Webcam", height=300,
                              elem_id="webcam-input")  # fmt: skip
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="webcam-model")
            gr.HTML(f"<p>{1 / WEBCAM_EVERY:g} frames a second at most, {WEBCAM_SIDE} pixels long, for "
                    f"{WEBCAM_SECONDS} seconds; then start again. Frames are not kept.</p>", elem_classes="limits")
        with gr.Column(scale=4, min_width=320):
            shown = gr.Image(label="Classes", interactive=False, elem_id="webcam-result", height=460, buttons=[],
                             format="jpeg", show_label=False)  # fmt: skip
    camera.stream(handlers.frame, [camera, model], shown, api_name="frame", stream_every=WEBCAM_EVERY,
                  time_limit=WEBCAM_SECONDS, show_progress="hidden", **MODEL_QUEUE)  # fmt: skip
    return [model]


def export_channel(handlers: Handlers, viewer: gr.HTML) -> None:
    """Connects the viewer's export buttons: it sends its map, the server writes a file, the browser keeps it.

    Args:
        handlers: What answers.
        viewer: The viewer.
    """
    semantic_map, segment_map, photo, download = (
        gr.File(visible="hidden", elem_id=f"export-{name}") for name in ("map", "segments", "photo", "download"))
    kind, request = gr.Textbox(visible="hidden"), gr.JSON(visible="hidden")
    viewer.export(
        handlers.export, [semantic_map, kind, photo, request, segment_map], download, api_name="export",
        js="async () => await window.hfsegViewer.exportRequest()", show_progress="hidden", concurrency_limit=2,
    ).success(None, [download], None, js="(file) => window.hfsegViewer.download(file)").failure(
        None, None, None, js=FAILED)  # fmt: skip


def prompt_channel(handlers: Handlers, viewer: gr.HTML) -> None:
    """Connects clicks and boxes in the viewer to the promptable model.

    Args:
        handlers: What answers.
        viewer: The viewer.
    """
    photo, mask = gr.File(visible="hidden"), gr.File(visible="hidden")
    model, prompts, answer = gr.Textbox(visible="hidden"), gr.JSON(visible="hidden"), gr.JSON(visible="hidden")
    viewer.prompt(
        handlers.prompt, [photo, model, prompts], [mask, answer], api_name="prompt", show_progress="hidden",
        js="() => window.hfsegViewer.editor.prompts.request()", trigger_mode="always_last", **MODEL_QUEUE,
    ).success(None, [mask, answer], None, js="(mask, facts) => window.hfsegViewer.editor.prompts.answer(mask, facts)"
              ).failure(None, None, None, js="() => window.hfsegViewer.editor.prompts.clear()")  # fmt: skip


def promise(models: Models) -> str:
    """Says what the page does.

    Args:
        models: What it serves.

    Returns:
        A sentence.
    """
    can = {task for name in models.names for task in models.tasks(name)}
    if can == {"instance"}:
        return "Every object gets a mask."
    return "Every pixel gets a class." if can == {"semantic"} else "Every pixel gets a class, every object a mask."


BEGIN = "(...values) => { window.hfsegViewer.begin(values[0]); return values; }"
FAILED = "(image) => window.hfsegViewer.failed(image)"


def make_viewer() -> gr.HTML:
    """Makes the canvas viewer.

    Returns:
        A component whose value is a message of `hfseg.demo.encoding`; it triggers `export`.
    """
    scripts = "\n".join((STATIC / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    viewer = gr.HTML(
        value=None, html_template=_text("viewer.html"), css_template="", js_on_load=scripts, elem_id="viewer",
        apply_default_css=False, container=False,
    )  # fmt: skip
    viewer.api_info = lambda: {"type": {}, "description": "what the viewer shows: files, classes, times"}
    return viewer


def state_pill(models: Models) -> gr.HTML:
    """Makes the line that says how far the model is.

    Args:
        models: The page's.

    Returns:
        A component whose value is a list of `state` and `text`.
    """
    for name in dict.fromkeys([models.names[0], *models.prompted[:1]]):
        models.start(name)
    return gr.HTML(value=_states(models), html_template='<div class="states" role="status"></div>', elem_id="status",
                   js_on_load=_text("status.js"), apply_default_css=False)  # fmt: skip


def _states(models: Models) -> list[dict[str, str]]:
    found = []
    for name in models.paths:
        state, reason = models.state(name)
        if state != "waiting":
            found.append({"state": state, "text": f"{name}: {state}", "reason": reason})
    return found


def as_it_is(payload: Any) -> str | None:
    """Takes the uploaded file itself: gradio would clip 16 bits, and fail on some files before anybody said why.

    Args:
        payload: What gradio received.

    Returns:
        The file.
    """
    return payload.path if payload else None


@cache
def _text(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def page_style() -> dict[str, Any]:
    """Returns what `launch` has to know of the page's looks; fonts are those of the visitor's machine.

    Returns:
        Arguments of gradio's `launch`.
    """
    fonts = ["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md", spacing_size="md",
        font=fonts, font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )  # fmt: skip
    return {"theme": theme, "css_paths": [str(STATIC / "page.css"), str(STATIC / "viewer.css")]}
