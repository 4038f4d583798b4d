"""Bytes of a text file from a record's start on, by the block for what is fast and by the line for what is exact."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from bertray.reviews.file_access import open_bytes
from bertray.reviews.formats import text_records
from bertray.reviews.formats.text_records import Line

# Encodings in which a byte below 128 is always the ASCII character, and no other byte matters to the rules of CSV.
_ASCII_BYTES = ("utf-8", "ascii", "iso8859", "cp125", "latin")
_READ_BYTES = 1 << 20


def keeps_ascii(encoding: str) -> bool:
    """Whether bytes below 128 are ASCII characters wherever they stand in a text of this encoding."""
    return text_records.codec_name(encoding).startswith(_ASCII_BYTES)


@contextmanager
def open_window(path: str, encoding: str) -> Iterator[ByteWindow]:
    """A window at the start of a text file, whose gzip compression is taken off.

    Raises:
        OSError, EOFError, zlib.error: later, while reading: the file is damaged or the storage failed.
    """
    with open_bytes(path) as raw:
        zipped = text_records.is_gzip(raw)
        stored = cast("IO[bytes]", _Digested(raw))
        unzipped = cast("IO[bytes]", gzip.GzipFile(fileobj=stored)) if zipped else stored
        yield ByteWindow(unzipped, encoding, stored)


class _Digested:
    """A stream with a digest of what has been read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._digest.update(content)
        return content

    def hexdigest(self) -> str:
        """sha256 of the whole stream, whose rest is read for it."""
        while self.read(_READ_BYTES):
            pass
        return self._digest.hexdigest()


class ByteWindow:
    """A stream of which only what stands behind the last finished record is held.

    `block` looks ahead without moving; `lines` gives lines from the same place; `advance` moves.

    Attributes:
        offset: bytes of the file before the window.
    """

    def __init__(self, stream: IO[bytes], encoding: str, stored: Any) -> None:
        self._stream, self._encoding, self._stored = stream, text_records.codec_name(encoding), stored
        self._held, self._start, self._cursor = bytearray(), 0, 0
        self._at_end = False
        self.offset = 0

    def block(self, num_bytes: int) -> tuple[bytes, bool]:
        """(the next bytes, whether the file ends with them); fewer only there."""
        self._fill(self._start + num_bytes)
        block = bytes(memoryview(self._held)[self._start : self._start + num_bytes])
        return block, self._at_end and self._start + len(block) == len(self._held)

    def digest(self) -> str:
        """sha256 of the file as it is stored, once nothing more is read from the window."""
        found: str = self._stored.hexdigest()
        return found

    def advance(self, num_bytes: int) -> None:
        """Let go of bytes that are dealt with."""
        self._start += num_bytes
        self.offset += num_bytes
        if self._start > len(self._held) // 2:
            del self._held[: self._start]
            self._start = 0

    def lines(self, ends: dict[int, int]) -> Iterator[Line]:
        """Lines from here on, with byte offsets in the file; the window does not move.

        Args:
            ends: receives the offset behind each line by the offset of its start.
        """
        self._cursor = self._start
        base = self.offset - self._start
        for line in text_records.byte_lines(cast("IO[bytes]", self), self._encoding, self.offset):
            ends[line.offset] = base + self._cursor
            yield line

    def readline(self, limit: int) -> bytes:
        """The next line of `lines`, or its first `limit` bytes."""
        end, searched = -1, self._cursor
        while end < 0:
            end = self._held.find(b"\n", searched, self._cursor + limit)
            if end >= 0 or len(self._held) >= self._cursor + limit or self._at_end:
                break
            searched = len(self._held)
            self._fill(searched + _READ_BYTES)
        stop = min(end + 1 if end >= 0 else len(self._held), self._cursor + limit)
        line = bytes(memoryview(self._held)[self._cursor : stop])
        self._cursor = stop
        return line

    def _fill(self, size: int) -> None:
        while len(self._held) < size and not self._at_end:
            piece = self._stream.read(max(_READ_BYTES, size - len(self._held)))
            self._held += piece
            self._at_end = not piece
