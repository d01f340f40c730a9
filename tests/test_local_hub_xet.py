"""The local hub's Xet side: hashes against upstream's own reference, and what liars and cut connections get."""

from __future__ import annotations

import hashlib
import io
import struct

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfseg.hub.local import xet_format as xet
from hfseg.hub.local.xet_format import XetError, bytes_of, hex_of

# From xet-core, xet_core_structures/src/merklehash/aggregated_hashes.rs: chunks, hash of the xorb, hash of the file.
REFERENCE = [
    ([], "0" * 64, "0" * 64),
    ([("0" * 64, 0)], "0" * 64, "638a6bc391964a85939d48f008e8bdbae6a7975e7ca2d87a3ce2492f4e4d8a4c"),
    ([("cfc5d07f6f03c29bbf424132963fe08d19a37d5757aaf520bf08119f05cd56d6", 100)],
     "cfc5d07f6f03c29bbf424132963fe08d19a37d5757aaf520bf08119f05cd56d6",
     "8e16257caa3fe079d484d872a8975264b2ff683b0d6db9028cc7c0f968a45661"),
]  # fmt: skip


def pack(chunk: bytes, scheme: int = 0, **lies) -> bytes:
    """A chunk with its header, as hf_xet writes it."""
    plain = chunk
    if scheme == 2:
        plain = b"".join(chunk[i::4] for i in range(4))
    packed = plain if scheme == 0 else lz4.frame.compress(plain)
    header = {"version": 0, "packed": len(packed), "scheme": scheme, "size": len(chunk)} | lies
    return (bytes([header["version"]]) + header["packed"].to_bytes(3, "little") + bytes([header["scheme"]])
            + header["size"].to_bytes(3, "little") + packed)  # fmt: skip


def shard(files, version=2) -> bytes:
    """A shard of [(file hash, sha256, [(xorb, first, last, size, check)])], as far as the hub reads it."""
    out = [b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9") + struct.pack("<QQ", version, 0)]
    for digest, sha256, segments in files:
        flags = (1 << 31 if segments and segments[0][4] is not None else 0) | (1 << 30 if sha256 else 0)
        out.append(bytes_of(digest) + struct.pack("<IIQ", flags, len(segments), 0))
        out += [bytes_of(xorb) + struct.pack("<4I", 0, size, first, last) for xorb, first, last, size, _ in segments]
        out += [check + bytes(16) for *_, check in segments if check is not None]
        out += [bytes_of(sha256) + bytes(16)] if sha256 else []
    return b"".join([*out, b"\xff" * 32 + bytes(16)])


def described(chunks, first=0, last=None):
    """What a shard says of a file that is made of some chunks of one xorb."""
    hashes = [(xet.chunk_hash(chunk), len(chunk)) for chunk in chunks]
    used = slice(first, len(chunks) if last is None else last)
    content = b"".join(chunks[used])
    segment = (hex_of(xet.tree_hash(hashes)), used.start, used.stop, len(content),
               xet.range_hash([digest for digest, _ in hashes[used]]))  # fmt: skip
    return hex_of(xet.file_hash(hashes[used])), hashlib.sha256(content).hexdigest(), [segment]


@pytest.mark.parametrize("chunks,xorb,file", REFERENCE)
def test_hashes_are_those_of_xet_core(chunks, xorb, file):
    nodes = [(bytes_of(digest), size) for digest, size in chunks]
    assert hex_of(xet.tree_hash(nodes)) == xorb
    assert hex_of(xet.file_hash(nodes)) == file


@given(st.binary(min_size=32, max_size=32))
def test_hex_and_back(digest):
    assert bytes_of(hex_of(digest)) == digest


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=70), st.sampled_from([0, 1, 2])), min_size=1, max_size=5),
       st.booleans())  # fmt: skip
def test_a_xorb_gives_its_chunks_back(chunks, footer):
    packed = b"".join(pack(chunk, scheme) for chunk, scheme in chunks) + (b"XETBLOB\1" + bytes(40) if footer else b"")
    assert list(xet.read_xorb(io.BytesIO(packed))) == [chunk for chunk, _ in chunks]


@given(st.integers(1, 60), st.sampled_from([0, 1, 2]))
def test_a_cut_xorb_never_passes_for_a_whole_one(cut, scheme):
    whole = pack(b"first chunk" * 3, scheme) + pack(b"second chunk" * 3, scheme)
    try:
        read = list(xet.read_xorb(io.BytesIO(whole[:-cut])))
    except XetError:
        return
    assert len(read) < 2  # cut between two chunks: the hash of what is left is another


@pytest.mark.parametrize("packed", [
    pack(b"abc", size=4), pack(b"abc", size=2), pack(b"abcd" * 9, 1, size=35), pack(b"abcd" * 9, 2, size=37),
    pack(b"abc", size=0), pack(b"abc", version=1), pack(b"abc", scheme=0, packed=9), pack(b"abc", 3), pack(b"abc", 99),
    pack(bytes(200_000)), pack(bytes(9 << 20), 1, size=128 << 10), pack(b"abc")[:4], pack(b"abc", 0, packed=0xFFFFFF),
    bytes([0, 4, 0, 0, 1, 4, 0, 0]) + b"nolz",
])  # fmt: skip
def test_chunks_that_lie_are_refused(packed):
    with pytest.raises(XetError):
        list(xet.read_xorb(io.BytesIO(packed)))


def test_a_xorb_may_not_hold_more_than_a_xorb_holds():
    many = pack(b"a") * (xet.MAX_CHUNKS + 1)
    with pytest.raises(XetError, match="more than a xorb may"):
        list(xet.read_xorb(io.BytesIO(many)))


def test_a_shard_is_read_as_it_was_written():
    digest, sha256, segments = described([b"one", b"two", b"three"], 1)
    read = xet.read_shard(shard([(digest, sha256, segments), (digest, None, [(*segments[0][:4], None)])]) + b"more")
    assert [(file.hash, file.sha256) for file in read] == [(digest, sha256), (digest, None)]
    assert [(s.xorb, s.first, s.last, s.size, s.check) for s in read[0].segments] == segments
    assert read[1].segments[0].check is None


def test_every_cut_of_a_shard_is_noticed():
    whole = shard([described([b"one", b"two"]), described([b"three"])])
    for length in range(len(whole)):
        if length < len(whole):
            with pytest.raises(XetError):
                xet.read_shard(whole[:length])


@given(st.binary(max_size=300))
def test_noise_is_no_shard(noise):
    start = shard([])[:48]
    for content in (noise, start + noise):
        try:
            files = xet.read_shard(content)
        except XetError:
            continue
        assert len(files) * 48 <= len(content)


def test_lying_counts_cost_nothing():
    lie = shard([])[:48] + bytes(32) + struct.pack("<IIQ", 3 << 30, 0xFFFFFFFF, 0)
    with pytest.raises(XetError):
        xet.read_shard(lie)
    with pytest.raises(XetError, match="version"):
        xet.read_shard(shard([], version=3))
    with pytest.raises(XetError, match="no chunks"):
        xet.read_shard(shard([(described([b"a"])[0], None, [("0" * 64, 1, 1, 0, None)])]))
