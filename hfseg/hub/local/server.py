"""Running the hub: in a thread of this process, or in the foreground."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import uvicorn

from hfseg.errors import UserError
from hfseg.hub.local.access import create_token
from hfseg.hub.local.app import Hub, is_loopback
from hfseg.hub.local.names import check_name
from hfseg.hub.local.problems import HubError
from hfseg.hub.local.store import DATABASE


class LocalHub:
    """A hub for models, data sets and Spaces on this machine, for work without internet and for tests.

    It answers huggingface_hub, transformers, datasets, evaluate and gradio. Everything is in one folder: the files by
    their hashes, and the rest in one sqlite file.

    Args:
        root: Folder of the hub; it is made where it is missing, and may be used again later.
        host: Where to listen. Give another one than loopback only in a network that you trust: the hub speaks plain
            HTTP.
        port: 0 for any that is free.
        middleware: Callables that take an ASGI application and return one, for tests; the first one is outermost.
        user: The owner's name.
        quota_bytes: How much each user or organization may hold; None for no limit.

    Attributes:
        url: For HF_ENDPOINT, known inside of the `with` block.
        token: The owner's token, which may read and write everything here. The folder keeps it in a file that only
            its owner can read, as `hf auth login` keeps its own; of all others it keeps hashes.

    Raises:
        UserError: When another process serves the folder, or the port is taken.

    Example:
        >>> import os, subprocess, sys, tempfile
        >>> code = "from huggingface_hub import create_repo; print(create_repo('net').repo_id)"
        >>> with LocalHub(tempfile.mkdtemp()) as hub:  # a process, as HF_ENDPOINT is read once, on import
        ...     environment = os.environ | hub.environment()
        ...     run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        >>> run.stdout.decode().strip()
        'me/net'
    """

    def __init__(
        self, root: str | Path, *, host: str = "127.0.0.1", port: int = 0, middleware: Sequence[Callable] = (),
        user: str = "me", quota_bytes: int | None = None,
    ):  # fmt: skip
        self.root, self.host, self.port, self.url = Path(root).expanduser(), host, port, ""
        self._middleware, self._hub = list(middleware), Hub(self.root, host, quota_bytes)
        self._server: uvicorn.Server | None = None
        self.user = user
        self.token = self._owner_token()

    def _owner_token(self) -> str:
        file = self._hub.store.root / "owner_token"
        known = file.read_text().strip() if file.is_file() else None
        with self._hub.store.write() as db:
            token = create_token(db, self.user, "owner", known)
        if token != known:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                out.write(token + "\n")
        return token

    @property
    def quota_bytes(self) -> int | None:
        """How much each user or organization may hold; it can be set at any time."""
        return self._hub.quota_bytes

    @quota_bytes.setter
    def quota_bytes(self, value: int | None) -> None:
        self._hub.quota_bytes = value

    def create_token(self, user: str, role: str = "write") -> str:
        """Makes a token for a user, who is added where he is new.

        Args:
            user: Name; he may write to his own namespace and to those of his organizations.
            role: `write`, or `read` for a token that changes nothing.

        Returns:
            The token.

        Raises:
            UserError: For a name or role that does not exist.
        """
        with self._hub.store.write() as db:
            return _token(db, user, role)

    def create_org(self, name: str, members: Sequence[str] = ()) -> None:
        """Makes an organization, or adds members to one.

        Args:
            name: Its name.
            members: Users, who may write to its namespace.

        Raises:
            UserError: For a name that the hub does not accept.
        """
        for each in (name, *members):
            with _told():
                check_name(each, "user")
        with self._hub.store.write() as db:
            db.execute("INSERT OR IGNORE INTO accounts VALUES (?, 1)", (name,))
            for user in members:
                db.execute("INSERT OR IGNORE INTO accounts VALUES (?, 0)", (user,))
                db.execute("INSERT OR IGNORE INTO members VALUES (?, ?)", (name, user))

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Returns what a process needs in its environment to use this hub and nothing outside of it.

        Args:
            token: Whose it is, if not the owner's; an empty one for nobody.

        Returns:
            Names and values, for `subprocess.run(..., env=os.environ | ...)`.
        """
        return {
            "HF_ENDPOINT": self.url, "HF_TOKEN": self.token if token is None else token,
            "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_EVALUATE_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "GRADIO_ANALYTICS_ENABLED": "False", "HF_XET_TELEMETRY_ENABLED": "0",
            "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip

    def __enter__(self) -> LocalHub:
        app = self._hub
        for wrap in reversed(self._middleware):
            app = wrap(app)
        try:
            listener = _listen(self.host, self.port)
        except UserError:
            self._hub.close()
            raise
        self.port = listener.getsockname()[1]
        host = self.host if is_loopback(self.host) else socket.gethostname()
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none",
                                timeout_graceful_shutdown=2, timeout_keep_alive=60, server_header=False,
                                proxy_headers=False)  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="hfseg hub", daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the local hub did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(10)
            self._server = None
        self._hub.close()


def serve(root: str | Path, host: str = "127.0.0.1", port: int = 8787, say: Callable[[str], None] = print) -> None:
    """Runs a hub until Ctrl-C.

    Args:
        root: Folder of the hub.
        host: Where to listen, see `LocalHub`.
        port: Port.
        say: Called with each line for the user.

    Raises:
        UserError: When another process serves the folder, or the port is taken.
    """
    with LocalHub(root, host=host, port=port) as hub:
        say(f"hub of {hub.root} at {hub.url}, until Ctrl-C; in the shells that use it:")
        say(f"export HF_ENDPOINT={hub.url}")
        say(f"export HF_TOKEN={hub.token}")
        if not is_loopback(host):
            say("others in this network can reach it, and it speaks plain HTTP: tokens can be overheard")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            say("the hub has stopped")


def token_for(root: str | Path, user: str, role: str = "write") -> str:
    """Makes a token of a hub that is there, whether it is being served or not; see `LocalHub.create_token`.

    Args:
        root: Folder of the hub.
        user: Whom it stands for.
        role: `write` or `read`.

    Returns:
        The token.

    Raises:
        UserError: When there is no hub, or for a name or role that does not exist.

    Example:
        >>> import tempfile
        >>> with LocalHub(tempfile.mkdtemp()) as hub:
        ...     token_for(hub.root, "ann", "read").startswith("hf_")
        True
    """
    file = Path(root).expanduser() / DATABASE
    if not file.is_file():
        raise UserError(f"there is no hub in {root}", "a folder that hfseg hub serve has made", "give its --root")
    with closing(sqlite3.connect(file, timeout=30)) as db, db:
        return _token(db, user, role)


def _token(db: sqlite3.Connection, user: str, role: str) -> str:
    if role not in ("read", "write"):
        raise UserError(f"unknown role {role!r}", "read, write")
    with _told():
        return create_token(db, user, role)


@contextmanager
def _told() -> Iterator[None]:
    """Tells what a browser or client would be told."""
    try:
        yield
    except HubError as error:
        raise UserError(error.message) from None


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}",
                        fix="another --port, or 0 for any that is free") from None  # fmt: skip
    listener.listen(128)
    return listener
