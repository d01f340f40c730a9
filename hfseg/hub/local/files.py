"""Content-addressed files: a name is the hash of what is in it, and a file is either there, whole, or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


class Files:
    """Files by their hash: SHA-256 (64 hex digits) for large ones, git's blob SHA-1 (40) for regular ones.

    `Store.place` puts them in their place, inside of a transaction.

    Args:
        root: Folder for `files` and `temporary`; what an earlier process left in the latter is removed.

    Example:
        >>> import tempfile
        >>> files = Files(Path(tempfile.mkdtemp()))
        >>> with files.incoming() as incoming:
        ...     incoming.write(b"hello")
        ...     incoming.finish().read_bytes()
        b'hello'
        >>> list(files.temporary.iterdir())
        []
    """

    def __init__(self, root: Path):
        self.folder, self.temporary = root / "files", root / "temporary"
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        if not (self.folder / "ff").is_dir():
            for first in range(256):
                (self.folder / f"{first:02x}").mkdir(parents=True, exist_ok=True)
            sync_files([self.folder, root])

    def path(self, key: str) -> Path:
        """Returns where the content with this hash is, or would be."""
        return self.folder / key[:2] / key[2:]

    def has(self, key: str) -> bool:
        """Says whether the content with this hash is here."""
        return self.path(key).is_file()

    def read(self, key: str) -> bytes:
        """Returns the content of a small file."""
        return self.path(key).read_bytes()

    def incoming(self) -> Incoming:
        """Returns a file to write to, which leaves no trace unless `Store.place` takes it."""
        return Incoming(self.temporary)

    def workspace(self) -> tempfile.TemporaryDirectory:
        """Returns a folder for the files of one commit, which goes when its block ends."""
        return tempfile.TemporaryDirectory(dir=self.temporary, ignore_cleanup_errors=True)

    def place(self, source: Path, key: str) -> bool:
        """Moves a file, which is on disk whole, to its place.

        Args:
            source: The file; it stays where it is if the content is here already.
            key: The hash of its content; the caller has checked it.

        Returns:
            Whether it was new.
        """
        target = self.path(key)
        if target.is_file():
            return False
        os.replace(source, target)
        return True

    def remove_all_but(self, wanted: set[str]) -> None:
        """Removes the files that nothing refers to any more.

        Args:
            wanted: The hashes to keep.
        """
        for folder in self.folder.iterdir():
            for file in folder.iterdir():
                if folder.name + file.name not in wanted:
                    file.unlink()


class Incoming:
    """A file that is being written, and hashed on the way.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path):
        self.size, self.sha256 = 0, hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=folder)
        self.name, self._file = Path(name), os.fdopen(descriptor, "wb", buffering=0)

    def write(self, block: bytes) -> None:
        """Adds bytes at the end."""
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self.sha256.update(block)
        self.size += len(block)

    def finish(self) -> Path:
        """Returns the path of the file, which is whole now; `sync_files` makes it survive a power cut."""
        self._file.close()
        return self.name

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


def sync_files(paths: Iterable[Path]) -> None:
    """Waits until files, or the names in folders, are on disk; many at once, as a disk writes them together.

    Args:
        paths: Files and folders.
    """

    def sync(path: Path) -> None:
        if os.name == "nt" and path.is_dir():
            return
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sync, paths))
