"""Row groups and column chunks of a Parquet file, read from the bytes of its footer.

pyarrow reads footers too, but asking it for a column chunk of a damaged one ends the process: the C++ exception is not
caught (pyarrow 25, `RowGroupMetaData.column`; one flipped bit in a hundred of a footer does it).

The format is Thrift's compact protocol: https://parquet.apache.org/docs/file-format/metadata/ and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Thrift's type numbers. A true boolean in a field and a false one are types of their own.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = range(1, 14)
_MAX_DEPTH = 32
_DICTIONARY_ENCODINGS = {2, 8}
_DELTA_TEXT_ENCODINGS = {6, 7}  # DELTA_LENGTH_BYTE_ARRAY, DELTA_BYTE_ARRAY
_CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "LZ4_HADOOP", "ZSTD", "LZ4_RAW")


@dataclass(frozen=True)
class ColumnChunk:
    """One column of one row group."""

    path: str  # of the column in the schema, `a.b` for a nested one
    has_dictionary: bool
    has_delta_text: bool  # some pages hold strings in an encoding that pyarrow does not decode into dictionaries
    codec: str
    uncompressed_bytes: int
    compressed_bytes: int


@dataclass(frozen=True)
class RowGroup:
    num_rows: int
    total_bytes: int  # uncompressed
    chunks: tuple[ColumnChunk, ...]


@dataclass(frozen=True)
class Footer:
    num_rows: int
    row_groups: tuple[RowGroup, ...]
    encrypted: bool  # some column or the footer's algorithm


def parse_footer(content: bytes) -> Footer:
    """Read a FileMetaData struct.

    Args:
        content: the footer, without the file's last eight bytes.

    Raises:
        ValueError: this is no footer.
    """
    try:
        file = _Reader(content).struct({4: _ROW_GROUP}, 0)
        groups = tuple(_row_group(group) for group in file.get(4, ()))
        crypto = 8 in file or any(8 in chunk for group in file.get(4, ()) for chunk in group.get(1, ()))
        return Footer(_number(file, 3), groups, crypto)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"no Parquet footer: {error}") from error


def _row_group(group: dict[int, Any]) -> RowGroup:
    return RowGroup(_number(group, 3), _number(group, 2), tuple(_chunk(chunk) for chunk in group.get(1, ())))


def _chunk(chunk: dict[int, Any]) -> ColumnChunk:
    metadata = chunk.get(3)
    if metadata is None:
        if 8 in chunk:  # encrypted with its own key: told by `encrypted`
            return ColumnChunk("", False, False, "UNCOMPRESSED", 0, 0)
        raise ValueError("a column chunk without metadata")
    codec = _number(metadata, 4)
    name = _CODECS[codec] if 0 <= codec < len(_CODECS) else f"number {codec}"
    path = b".".join(metadata.get(3, ())).decode("utf-8", "replace")
    encodings = set(metadata.get(2, ()))
    return ColumnChunk(
        path,
        bool(_DICTIONARY_ENCODINGS & encodings),
        bool(_DELTA_TEXT_ENCODINGS & encodings),
        name,
        _number(metadata, 6),
        _number(metadata, 7),
    )


def _number(struct: dict[int, Any], field: int) -> int:
    value = struct.get(field)
    if not isinstance(value, int):
        raise ValueError(f"field {field} is missing")
    return value


# Which fields are structs or lists that matter, by field number: of the others only integers are kept.
_METADATA: dict[int, Any] = {2: None, 3: None}
_CHUNK: dict[int, Any] = {3: _METADATA, 8: {}}
_ROW_GROUP: dict[int, Any] = {1: _CHUNK}


class _Reader:
    """Thrift's compact protocol; keeps integers and the structs on the way to column chunks, passes over the rest."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def struct(self, wanted: dict[int, Any], depth: int) -> dict[int, Any]:
        """Field number -> value; of the fields that are not wanted, only integers and that they are there."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            delta, kind = header >> 4, header & 15
            number = number + delta if delta else self._zigzag()
            if number in wanted and kind == _STRUCT:
                fields[number] = self.struct(wanted[number], depth + 1)
            elif number in wanted and kind == _LIST:
                fields[number] = self._list(wanted[number], depth)
            else:
                fields[number] = self._value(kind, depth)
        return fields

    def _list(self, wanted: dict[int, Any] | None, depth: int) -> list[Any]:
        """Structs where some are wanted, else integers or strings."""
        size, kind = self._list_header()
        if (kind == _STRUCT) != (wanted is not None):
            raise ValueError(f"a list of type {kind} where another belongs")
        if wanted is not None:
            return [self.struct(wanted, depth + 1) for _ in range(size)]
        return [self._binary() if kind == _BINARY else self._value(kind, depth) for _ in range(size)]

    def _binary(self) -> bytes:
        length = self._varint()
        start = self._at
        self._skip(length)
        return self._content[start : self._at]

    def _list_header(self) -> tuple[int, int]:
        header = self._byte()
        size = header >> 4 if header >> 4 != 15 else self._varint()
        if size > len(self._content) - self._at:  # an element has at least one byte
            raise ValueError("a list longer than the footer")
        return size, header & 15

    def _value(self, kind: int, depth: int) -> int | None:
        """An integer or boolean; None of what is passed over."""
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind in (_TRUE, _FALSE):
            return int(kind == _TRUE)
        if kind == _BYTE:
            return self._byte()
        if kind == _STRUCT:
            self.struct({}, depth + 1)
        elif kind in (_LIST, _SET):
            size, inner = self._list_header()
            for _ in range(size):
                self._element(inner, depth)
        elif kind == _MAP:
            if size := self._varint():
                kinds = self._byte()
                for _ in range(size):
                    self._element(kinds >> 4, depth)
                    self._element(kinds & 15, depth)
        else:
            lengths = {_DOUBLE: 8, _UUID: 16}
            self._skip(self._varint() if kind == _BINARY else lengths[kind])
        return None

    def _element(self, kind: int, depth: int) -> None:
        if kind in (_TRUE, _FALSE):  # in a list a boolean has a byte of its own
            self._skip(1)
        else:
            if depth > _MAX_DEPTH:
                raise ValueError("nested too deep")
            self._value(kind, depth + 1)

    def _byte(self) -> int:
        value = self._content[self._at]
        self._at += 1
        return value

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._content):
            raise ValueError("it ends too early")

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
