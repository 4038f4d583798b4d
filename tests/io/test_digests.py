"""Keys of caches and digests of files."""

from __future__ import annotations

import hashlib

from bertray.io.digests import cache_key, file_sha256


def test_cache_key_does_not_depend_on_the_order_of_keys_but_on_every_value():
    assert cache_key({"a": 1, "b": [2, 3]}) == cache_key({"b": (2, 3), "a": 1})
    assert len({cache_key({"a": 1}), cache_key({"a": 2}), cache_key({"b": 1}), cache_key({"a": "1"})}) == 4


def test_file_sha256_is_that_of_the_whole_content(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
