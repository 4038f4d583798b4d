"""The whole content of a file is read where another looks like it, and nowhere else."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from bertray.config import TextFormat
from bertray.execution.on_demand import in_this_process
from bertray.reviews.file_identity import FINGERPRINT_BYTES, digest_file, with_digests_where_alike
from bertray.reviews.listing import list_inputs
from bertray.reviews.scan import FileScan, ScanSettings
from tests.reviews.test_scan import good


def test_contents_are_read_where_size_and_fingerprint_are_equal(tmp_path):
    def large(name: str, word: str) -> FileScan:
        text = "a" * FINGERPRINT_BYTES + word + "b" * FINGERPRINT_BYTES
        pq.write_table(
            pa.table({"text": [text]}), tmp_path / name, compression="none", use_dictionary=False,
            write_statistics=False,
        )  # fmt: skip
        [entry] = list_inputs([str(tmp_path / name)], TextFormat())
        return good(entry, ScanSettings())

    one, other, alone = large("1.parquet", "one"), large("2.parquet", "two"), large("3.parquet", "three")
    files = with_digests_where_alike([one.file, other.file, alone.file], in_this_process)
    assert one.file.fingerprint == other.file.fingerprint
    assert [file.digest is None for file in files] == [False, False, True]
    assert files[0].digest == digest_file(one.file) != files[1].digest
    # Alone, it is read where a file that is not among these looks like it.
    looks = [(alone.file.size_bytes, alone.file.fingerprint)]
    assert with_digests_where_alike([alone.file], in_this_process, looks)[0].digest == digest_file(alone.file)
