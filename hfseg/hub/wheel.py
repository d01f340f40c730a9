"""The wheel of this very hfseg, made from the installed package itself: no network, no build, the same bytes again."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import zipfile
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import hfseg
from hfseg.errors import UserError

TAG = "py3-none-any"
_LEFT_OUT = ("__pycache__", ".pyc", ".pyo", ".nbc", ".nbi", "~", ".orig", ".rej", ".swp")  # what a checkout gathers
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say


def build_wheel(folder: str | Path) -> Path:
    """Writes the wheel of the hfseg that runs, whether it was installed from a checkout or from a wheel.

    Args:
        folder: Where to; made where needed.

    Returns:
        The file. The same package gives the same bytes.

    Raises:
        UserError: When hfseg is not installed, or what is installed is another version than what runs.

    Example:
        >>> import tempfile
        >>> build_wheel(tempfile.mkdtemp()).name == wheel_name()
        True
    """
    installed = _installed()
    info = f"hfseg-{hfseg.__version__}.dist-info"
    metadata, license_files = _metadata(installed)
    files = dict(_package_files())
    files[f"{info}/METADATA"] = metadata
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: hfseg\nRoot-Is-Purelib: true\nTag: {TAG}\n".encode()
    if entry_points := installed.read_text("entry_points.txt"):
        files[f"{info}/entry_points.txt"] = entry_points.encode()
    files |= {f"{info}/licenses/{name}": content for name, content in license_files.items()}
    record = "".join(f"{name},sha256={_digest(files[name])},{len(files[name])}\n" for name in sorted(files))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()

    path = Path(folder) / wheel_name()
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, key=lambda name: (name.startswith(info), name)):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr, entry.create_system, entry.compress_type = 0o100644 << 16, 3, zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])
    return path


def wheel_name() -> str:
    """Returns the wheel's file name.

    Returns:
        Such as `hfseg-0.1.0-py3-none-any.whl`.
    """
    return f"hfseg-{hfseg.__version__}-{TAG}.whl"


def requirements(*extras: str) -> list[str]:
    """Returns what has to be installed for the hfseg that runs.

    Args:
        extras: Such as `demo`.

    Returns:
        Requirements as pip takes them, in order.

    Raises:
        UserError: When hfseg is not installed.

    Example:
        >>> {"torch>=2.6", "gradio>=6.31"} < set(requirements("demo"))
        True
    """
    found = set()
    for text in _installed().requires or []:
        needed, _, condition = (part.strip() for part in text.partition(";"))
        wanted = re.fullmatch(r"""extra *== *["']([\w-]+)["']""", condition)
        if not condition or (wanted and wanted[1] in extras):
            found.add(needed)
        elif not wanted:
            found.add(text)
    return sorted(found, key=str.lower)


def _installed() -> Distribution:
    try:
        found = distribution("hfseg")
    except PackageNotFoundError as error:
        raise UserError("hfseg runs from its source and is not installed", "an installed hfseg",
                        "pip install -e . in the checkout") from error
    if found.version != hfseg.__version__:
        raise UserError(f"hfseg {found.version} is installed, and {hfseg.__version__} runs", "one version",
                        "pip install -e . again")
    return found


def _package_files():
    """Yields the files of the package: name in the wheel, and content."""
    root = Path(hfseg.__file__).resolve().parent
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _LEFT_OUT)
        for name in sorted(names):
            if not name.startswith(".") and not name.endswith(_LEFT_OUT):
                file = Path(folder) / name
                yield f"hfseg/{file.relative_to(root).as_posix()}", file.read_bytes()


def _metadata(installed: Distribution) -> tuple[bytes, dict[str, bytes]]:
    """Returns METADATA, and the licence files that it names; one that cannot be found is not named."""
    text = installed.read_text("METADATA") or installed.read_text("PKG-INFO")
    if not text:
        raise UserError("the installed hfseg has no metadata", fix="pip install -e . again")
    found = {}
    for name in HeaderParser().parsestr(text).get_all("License-File") or []:
        places = [f"licenses/{name}", name, f"../{name}"]  # a wheel's, an older one's, a checkout's beside its egg-info
        content = next((content for place in places if (content := installed.read_text(place))), None)
        if content is None:
            text = text.replace(f"License-File: {name}\n", "", 1)
        else:
            found[name] = content.encode()
    return text.encode(), found


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
