"""Content-addressed files: a name is the hash of what is in it, and a file is either there, whole, or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path


class Files:
    """Files by their hash: SHA-256 (64 hex digits) for large ones, git's blob SHA-1 (40) for regular ones.

    Args:
        root: Folder for `files` and `temporary`; what an earlier process left in the latter is removed.

    Example:
        >>> import tempfile
        >>> files = Files(Path(tempfile.mkdtemp()))
        >>> key = files.add_regular(b"hello")
        >>> key, files.path(key).read_bytes()
        ('b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0', b'hello')
    """

    def __init__(self, root: Path):
        self.folder, self.temporary = root / "files", root / "temporary"
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Returns where the content with this hash is, or would be."""
        return self.folder / key[:2] / key[2:]

    def has(self, key: str) -> bool:
        """Says whether the content with this hash is here."""
        return self.path(key).is_file()

    def incoming(self) -> Incoming:
        """Returns a file to write to; without `keep` it leaves no trace."""
        return Incoming(self)

    def add_regular(self, content: bytes) -> str:
        """Keeps a small file.

        Args:
            content: Its bytes.

        Returns:
            git's hash of it.
        """
        key = git_hash("blob", content)
        if not self.has(key):
            with self.incoming() as incoming:
                incoming.write(content)
                incoming.keep(key)
        return key

    def read(self, key: str) -> bytes:
        """Returns the content of a small file."""
        return self.path(key).read_bytes()

    def remove_all_but(self, wanted: set[str]) -> int:
        """Removes the files that nothing refers to any more.

        Args:
            wanted: The hashes to keep.

        Returns:
            How many files went.
        """
        gone = 0
        for folder in self.folder.iterdir():
            for file in folder.iterdir():
                if folder.name + file.name not in wanted:
                    file.unlink()
                    gone += 1
        return gone


class Incoming:
    """A file that is being written, and hashed on the way."""

    def __init__(self, files: Files):
        self.files, self.size, self.sha256 = files, 0, hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=files.temporary)
        self.name, self._file = Path(name), os.fdopen(descriptor, "wb", buffering=0)

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self.sha256.update(block)
        self.size += len(block)

    def keep(self, key: str) -> None:
        """Moves the file to its place, so that it survives a power cut from here on.

        Args:
            key: The hash of its content; the caller has checked it.
        """
        os.fsync(self._file.fileno())
        target = self.files.path(key)
        new_folder = not target.parent.is_dir()
        target.parent.mkdir(exist_ok=True)
        os.replace(self.name, target)
        _sync_folder(target.parent)
        if new_folder:
            _sync_folder(self.files.folder)

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self.name.unlink(missing_ok=True)


def git_hash(kind: str, content: bytes) -> str:
    """Returns git's name of an object.

    Args:
        kind: `blob`, `tree` or `commit`.
        content: Its bytes.

    Returns:
        40 hex digits.

    Example:
        >>> git_hash("blob", b"")
        'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """Returns what git holds in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
