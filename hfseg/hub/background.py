"""Push while the training goes on: the best weights of each evaluation, in a thread, and never at its expense."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hfseg.hub.push import published, push
from hfseg.run_directory import LOG

CLOSING = 240.0  # seconds; a hub that is silent gives up before


class BackgroundPush:
    """Pushes copies of a run directory in a thread. A failure is told and forgotten: the next offer tries again.

    Args:
        run: The run directory.
        repo_id: user/name.
        say: Called with a sentence about each push.
        **options: Of `push`: private, token, endpoint.
    """

    def __init__(self, run: Path, repo_id: str, say: Callable[[str], None], **options):
        self.run, self.repo_id, self.say, self.options = run, repo_id, say, options
        self._lock = threading.Lock()
        self._next: tuple[Path, str] | None = None
        self._thread: threading.Thread | None = None

    def offer(self, message: str) -> None:
        """Takes the run as it is now, to be pushed as soon as the push before it is done; only the newest waits.

        Args:
            message: The commit's title.
        """
        try:
            copy = self._copy()
        except Exception as error:  # a full disk, a token in the card: the final push will tell more
            self.say(f"not pushed, the training goes on: {str(error).splitlines()[0]}")
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, args=(copy, message), name="push", daemon=True)
                self._thread.start()
                return
            waiting, self._next = self._next, (copy, message)
        self._remove(waiting)

    def close(self) -> None:
        """Drops what waits, and waits some minutes for the push that is under way."""
        with self._lock:
            waiting, self._next, thread = self._next, None, self._thread
        self._remove(waiting)
        if thread:
            thread.join(CLOSING)

    def _copy(self) -> Path:
        """Files that are only ever replaced are linked, the log, which grows, is copied."""
        copy = Path(tempfile.mkdtemp(dir=self.run, prefix=".writing-push-")) / self.run.resolve().name
        for name in published(self.run):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            if name == LOG:
                shutil.copyfile(self.run / name, copy / name)
                continue
            try:
                os.link(self.run / name, copy / name)
            except OSError:
                shutil.copyfile(self.run / name, copy / name)
        return copy

    def _remove(self, offer: tuple[Path, str] | None) -> None:
        if offer:
            shutil.rmtree(offer[0].parent, ignore_errors=True)

    def _work(self, copy: Path, message: str) -> None:
        while True:
            shown = not are_progress_bars_disabled()
            try:
                disable_progress_bars()  # the training has one
                push(copy, self.repo_id, message=message, say=lambda _: None, **self.options)
                self.say(f"pushed: {message}")
            except Exception as error:  # whatever it is, the training is worth more
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.say(f"not pushed, the training goes on: {first}")
            finally:
                if shown:
                    enable_progress_bars()
                self._remove((copy, message))
            with self._lock:
                if self._next is None:
                    self._thread = None
                    return
                (copy, message), self._next = self._next, None
