"""Where the entries of an uncompressed zip lie in a mapped file; nothing is read out of them.

The module zipfile accepts much that torch never writes (compression, passwords, a file inside another
one's bytes, the same name twice) and takes the directory into memory whatever its size. Here all of
that is refused, so that an entry is a range of the file that no other entry touches.
"""

import mmap
import struct
from typing import NamedTuple

# Real shards have some thousand entries.
_MOST_ENTRIES, _MOST_BYTES = 100_000, 32 * 2**20

_END = struct.Struct("<4s4H2IH")
_END64_AT = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL16, _FULL32 = 2**16 - 1, 2**32 - 1  # the number stands elsewhere, in 64 bits
_ENCRYPTED = 1 | 1 << 6 | 1 << 13


class Entry(NamedTuple):
    """Where an entry's bytes begin in the file, and how many they are."""

    begin: int
    size: int


def entries(data: mmap.mmap) -> dict[str, Entry]:
    """Name -> where it lies, of every entry.

    Raises:
      ValueError: truncated or damaged; compressed or encrypted entries; names that occur twice;
        entries that overlap or leave the file; more of them than any checkpoint has.
    """
    count, size, begin = _directory(data)
    found, local, at = {}, {}, begin
    for _ in range(count):
        fields = _unpack(_CENTRAL, data, at, b"PK\1\2")
        flags, method, (packed, stored) = fields[3], fields[4], fields[8:10]
        lengths, header = fields[10:13], fields[16]
        at += _CENTRAL.size
        name = data[at : at + lengths[0]].decode()
        extra = data[at + lengths[0] : at + lengths[0] + lengths[1]]
        at += sum(lengths)
        stored, packed, header = _wide(extra, [stored, packed, header])
        if flags & _ENCRYPTED:
            raise ValueError(f"the entry {name[:99]!r} is encrypted")
        if method or packed != stored:
            raise ValueError(f"the entry {name[:99]!r} is compressed, as torch.save never does")
        if name in found:
            raise ValueError(f"the entry {name[:99]!r} is there twice")
        named = _unpack(_LOCAL, data, header, b"PK\3\4")[9:11]
        start = header + _LOCAL.size
        if data[start : start + named[0]] != name.encode():
            raise ValueError(f"the entry {name[:99]!r} has another name where it lies")
        found[name] = Entry(start + sum(named), stored)
        local[name] = header
    if at != begin + size:
        raise ValueError("the zip directory is of another length than it says")
    order = sorted(found, key=lambda name: local[name])
    for name, limit in zip(order, [*(local[name] for name in order[1:]), begin]):
        if found[name].begin + found[name].size > limit:
            raise ValueError(f"the entry {name[:99]!r} reaches into what comes after it")
    return found


def _directory(data: mmap.mmap) -> tuple[int, int, int]:
    """(how many entries, bytes of the directory, where it begins)."""
    last = len(data) - _END.size
    if last < 0 or data[last : last + 4] != b"PK\5\6":
        raise ValueError("the end of a zip file is missing: the file is truncated")
    _, *disks, count, size, begin, _ = _END.unpack_from(data, last)
    if count == _FULL16 or _FULL32 in (size, begin):
        at = _unpack(_END64_AT, data, last - _END64_AT.size, b"PK\6\7")[2]
        last, fields = at, _unpack(_END64, data, at, b"PK\6\6")
        disks, (count, size, begin) = [*fields[4:6], fields[6]], fields[7:10]
    if disks != [0, 0, count] or begin + size > last:
        raise ValueError("the zip directory is damaged")
    if count > _MOST_ENTRIES or size > _MOST_BYTES:
        raise ValueError(f"{count} entries in {size} bytes of zip directory are no checkpoint's")
    return count, size, begin


def _unpack(layout: struct.Struct, data: mmap.mmap, at: int, magic: bytes) -> tuple:
    if not 0 <= at <= len(data) - layout.size or data[at : at + 4] != magic:
        raise ValueError("the zip directory is damaged")
    return layout.unpack_from(data, at)


def _wide(extra: bytes, values: list[int]) -> list[int]:
    """Values of 32 bits, with those that did not fit read from the zip64 field."""
    wide, at = b"", 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + size]
        at += 4 + size
    at = 0
    for i, value in enumerate(values):
        if value == _FULL32:
            if at + 8 > len(wide):
                raise ValueError("the zip directory is damaged")
            values[i] = struct.unpack_from("<Q", wide, at)[0]
            at += 8
    return values
