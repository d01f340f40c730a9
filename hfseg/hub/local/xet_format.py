"""The two formats of Xet's write side: xorbs, which hold chunks, and shards, which say how files are made of chunks.

Source: huggingface/xet-core, xet_core_structures (xorb_chunk_format.rs, shard_format.rs, aggregated_hashes.rs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import lz4.frame
from blake3 import blake3

MAX_CHUNK = 128 << 10  # bytes, decoded
MAX_XORB = 64 << 20  # bytes, encoded and decoded alike, without headers and footer
MAX_CHUNKS = 8 << 10
MAX_SHARD = 64 << 20

_CHUNK_KEY = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
_NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
_RANGE_KEY = bytes.fromhex("7f1857d6ce56ed66127ff913e7a5c3f3a4cd26d5b5db49e64124987f28fb94c3")
_SHARD_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
_BOOKEND = b"\xff" * 32
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30
_ENTRY = 48  # bytes of every record in a shard


class XetError(ValueError):
    """A xorb or shard that does not hold what it says."""


@dataclass(frozen=True)
class Segment:
    """A run of chunks of one xorb: `first` to before `last`, `size` bytes decoded, and the hash of their hashes."""

    xorb: str
    first: int
    last: int
    size: int
    check: bytes | None


@dataclass(frozen=True)
class ShardFile:
    """A file as a shard describes it: its Xet hash, its SHA-256 and its segments."""

    hash: str
    sha256: str | None
    segments: tuple[Segment, ...]


def hex_of(digest: bytes) -> str:
    """Writes a hash as Xet does: four little-endian numbers of 64 bits.

    Example:
        >>> hex_of(bytes(range(32)))[:16]
        '0706050403020100'
    """
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def bytes_of(text: str) -> bytes:
    """Reads what `hex_of` wrote."""
    return struct.pack("<4Q", *(int(text[i : i + 16], 16) for i in range(0, 64, 16)))


def chunk_hash(content: bytes) -> bytes:
    """Returns the hash of a chunk."""
    return blake3(content, key=_CHUNK_KEY).digest()


def tree_hash(chunks: list[tuple[bytes, int]]) -> bytes:
    """Returns the hash of a xorb: a tree over the (hash, length) of its chunks.

    A group of 2 to 9 nodes ends where a hash is divisible by 4, so that a change moves few groups.

    Args:
        chunks: Hash and decoded length of each chunk.

    Returns:
        32 bytes; zeros for no chunks.
    """
    if not chunks:
        return bytes(32)
    nodes = list(chunks)
    while len(nodes) > 1:
        merged, start = [], 0
        while start < len(nodes):
            end = min(start + 9, len(nodes))
            for i in range(start + 2, end):
                if nodes[i][0][24] % 4 == 0:
                    end = i + 1
                    break
            group = nodes[start:end]
            text = "".join(f"{hex_of(digest)} : {size}\n" for digest, size in group)
            merged.append((blake3(text.encode(), key=_NODE_KEY).digest(), sum(size for _, size in group)))
            start = end
        nodes = merged
    return nodes[0][0]


def file_hash(chunks: list[tuple[bytes, int]]) -> bytes:
    """Returns the Xet hash of a file from the (hash, length) of its chunks."""
    return blake3(tree_hash(chunks), key=bytes(32)).digest() if chunks else bytes(32)


def range_hash(hashes: list[bytes]) -> bytes:
    """Returns what proves that a shard's writer knows the chunks of a segment."""
    return blake3(b"".join(hashes), key=_RANGE_KEY).digest()


def read_xorb(file: BinaryIO) -> Iterator[bytes]:
    """Yields the decoded chunks of a xorb; its footer, which only repeats them, is passed over.

    Args:
        file: The xorb, from its start.

    Yields:
        Chunks of at most 128 KiB.

    Raises:
        XetError: For anything that is cut, too long, or decodes to another length than it says.
    """
    count = total = 0
    while header := file.read(8):
        if header.startswith(b"XETBLOB"):
            return
        if len(header) < 8:
            raise XetError("the xorb ends inside of a chunk's header")
        packed, size = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
        if header[0] != 0 or size > MAX_CHUNK or packed > 2 * MAX_CHUNK or not size:
            raise XetError("a chunk of the xorb has a header that is not valid")
        content = file.read(packed)
        if len(content) < packed:
            raise XetError("the xorb ends inside of a chunk")
        chunk = _decode(content, header[4], size)
        if len(chunk) != size:
            raise XetError(f"a chunk of the xorb has {len(chunk)} bytes where its header says {size}")
        count, total = count + 1, total + size
        if count > MAX_CHUNKS or total > MAX_XORB:
            raise XetError("the xorb holds more than a xorb may")
        yield chunk


def _decode(content: bytes, scheme: int, size: int) -> bytes:
    if scheme == 0:
        return content
    if scheme not in (1, 2):
        raise XetError(f"a chunk of the xorb is packed in an unknown way ({scheme})")
    try:
        unpacker = lz4.frame.LZ4FrameDecompressor()
        plain = unpacker.decompress(content, max_length=size + 1)  # a small chunk cannot unpack to gigabytes
    except RuntimeError as error:
        raise XetError(f"a chunk of the xorb does not unpack: {error}") from None
    return plain if scheme == 1 or len(plain) != size else _regroup(plain)


def _regroup(content: bytes) -> bytes:
    """Puts bytes back in order that were sorted by their place in a group of 4."""
    out, start = bytearray(len(content)), 0
    for i in range(4):
        count = (len(content) - i + 3) // 4
        out[i::4] = content[start : start + count]
        start += count
    return bytes(out)


def read_shard(content: bytes) -> list[ShardFile]:
    """Reads the files that a shard describes; what follows them only repeats the xorbs.

    Args:
        content: The shard.

    Returns:
        The files.

    Raises:
        XetError: For anything that is cut or does not add up.
    """
    if len(content) < _ENTRY or content[:32] != _SHARD_TAG:
        raise XetError("this is no shard")
    if struct.unpack_from("<Q", content, 32)[0] != 2:
        raise XetError("the shard has a version that the hub does not know")
    files, at = [], _ENTRY
    while True:
        digest, flags, count = _record(content, at)[:3]
        at += _ENTRY
        if digest == _BOOKEND:
            return files
        records = count * (2 if flags & _WITH_VERIFICATION else 1) + bool(flags & _WITH_METADATA)
        if at + records * _ENTRY > len(content):
            raise XetError("the shard ends inside of a file")
        segments = []
        for i in range(count):
            xorb, _, size, first, last = _record(content, at + i * _ENTRY)
            check = _record(content, at + (count + i) * _ENTRY)[0] if flags & _WITH_VERIFICATION else None
            if first >= last:
                raise XetError("a segment of the shard has no chunks")
            segments.append(Segment(hex_of(xorb), first, last, size, check))
        sha256 = hex_of(_record(content, at + (records - 1) * _ENTRY)[0]) if flags & _WITH_METADATA else None
        files.append(ShardFile(hex_of(digest), sha256, tuple(segments)))
        at += records * _ENTRY


def _record(content: bytes, at: int) -> tuple[bytes, int, int, int, int]:
    if at + _ENTRY > len(content):
        raise XetError("the shard is cut")
    return struct.unpack_from("<32s4I", content, at)
