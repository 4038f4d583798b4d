"""The scan of a text file, whatever its format: its head, its rows, and what is said of a file that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bertray.config import TextFormat
from bertray.reviews.file_access import DATA_ERRORS, is_store_failure, reading, short
from bertray.reviews.formats import dialects, text_records
from bertray.reviews.formats.text_records import Head
from bertray.reviews.rows import BadFile, FileEntry, InputFile
from bertray.schema import Reason


class NotReadable(Exception):
    """A file is no file of reviews."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def scan_text(entry: FileEntry, reader: TextFormat, find: Callable[[Head], InputFile]) -> InputFile | BadFile:
    """Scan a file; bad data never raises.

    Args:
        entry: the file.
        reader: how it is read.
        find: finds its columns and rows, from its head on; may raise `NotReadable`.
    """
    try:
        with reading(entry.path):
            head = text_records.read_head(entry.path)
            other = dialects.other_content(head.raw, reader.encoding)
            if other is not None:
                return entry.bad(Reason.FILE_UNSUPPORTED, other)
            file = find(head)
    except NotReadable as error:
        return entry.bad(error.reason, error.detail)
    except DATA_ERRORS as error:
        if is_store_failure(error):
            raise
        return entry.bad(Reason.FILE_CORRUPT, short(error))
    return file if text_records.can_seek(head, reader.encoding) else replace(file, row_offsets=())
