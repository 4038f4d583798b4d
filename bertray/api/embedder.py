"""A model that turns texts into vectors in this process, or in the actors of `ray.data.Dataset.map_batches`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray import schema as s
from bertray.api.calls import call, device_of, plain
from bertray.api.classifier import column_of, texts_in
from bertray.api.texts import OnRefused, refuse, rows_of_texts
from bertray.config import EmbedConfig, build_config
from bertray.errors import ConfigError
from bertray.model.bundle import resolve_model
from bertray.reviews.corpus import read_spec
from bertray.scoring.models import check_reads_once, open_encoder


class Embedder:
    """The encoder of a bundle or of the model hub: one vector a text, as `bertray embed` writes it.

        embedder = bertray.Embedder.load("bundled", normalize=True)
        vectors_ND = embedder.encode(["Great film", "Never again"])

    Args:
        model: folder of a bundle or encoder, `<run>/model`, hub id (`name@revision`), `s3://`, `gs://` or `az://`
            prefix, `bundled`, or the result of `pretrain` or `train`.
        pooling: `mean` of the tokens' last hidden states, or `cls`, that of the first token.
        normalize: scale each vector to length 1, so that a dot product is the cosine.
        columns: `{"text": ..., "text_pair": ...}`, columns of tables that are embedded; by default `text`.
        max_length: as for `embed`; by default the bundle's.
        long_text: as for `embed`; by default the bundle's.
        cleaning: as for `embed`; by default the bundle's, or that of training.
        max_chars: as for `embed`; by default the bundle's, or that of training.
        device: `cpu`, `cuda`, or `auto`: a GPU if this process sees one.

    Raises:
        ConfigError: there is no such model; a vector for each token (`pooling="tokens"`) is for `bertray.embed`.
        InfrastructureError: the model hub or the object store cannot be reached.
    """

    def __init__(
        self,
        model: Any = "bundled",
        *,
        pooling: str = "mean",
        normalize: bool = False,
        columns: Mapping[str, str | None] | None = None,
        max_length: int | None = None,
        long_text: str | None = None,
        cleaning: Mapping[str, Any] | None = None,
        max_chars: int | None = None,
        device: str = "auto",
    ) -> None:
        with call():
            on = device_of(device)
            keys = {
                "model": plain(getattr(model, "model", model)),  # of a result, too
                "pooling": pooling,
                "normalize": normalize,
                "columns": {} if columns is None else plain(columns),
                "max_length": max_length,
                "long_text": long_text,
                "cleaning": plain(cleaning),
                "max_chars": max_chars,
            }
            config = build_config("embed", {**keys, "input": "texts", "output": "nothing"})
            assert isinstance(config, EmbedConfig)
            self._load(config, on)
        self._given = model  # a result may own the model's files

    def _load(self, config: EmbedConfig, device: str) -> None:
        from bertray.model import embedder
        from bertray.model.tokenization import ReviewTokenizer

        if config.pooling == "tokens" or config.pooling == "vocabulary":
            raise ConfigError(
                f"pooling={config.pooling}: an Embedder gives one vector a text.",
                "Call bertray.embed, which writes vectors of tokens or of a vocabulary.",
            )
        self.model = config.model
        info, folder = open_encoder(config), resolve_model(config.model)
        check_reads_once(config, info)
        self._spec = read_spec(config, info.cleaning, info.max_chars, wants_label=False)
        self._tokenizer = ReviewTokenizer(
            folder, config.max_length or info.max_length, config.long_text or info.long_text
        )
        self._embedder = embedder.Embedder(folder, pooling=config.pooling, normalize=config.normalize, device=device)
        self.model_version = info.model_version

    @classmethod
    def load(cls, model: Any = "bundled", **keys: Any) -> Embedder:
        """The same as the class itself."""
        return cls(model, **keys)

    @property
    def width(self) -> int:
        """Numbers of a vector, D."""
        return self._embedder.width

    def __repr__(self) -> str:
        return f"Embedder({self.model}, {self._embedder.pooling} pooling, {self.width} numbers a text)"

    def encode(self, texts: Any, pairs: Any = None, *, on_refused: OnRefused = "raise") -> NDArray[np.float32]:
        """Vectors float32 [N, D]; a row of NaN for a refused text.

        Args:
            texts: list, Series or array of texts.
            pairs: the second texts, of a model that was trained on pairs.
            on_refused: for a text that is empty after cleaning, `raise`, or `null` for NaN in its place.

        Raises:
            DataRefused: names the texts that cannot be embedded.
            ConfigError: `texts` is no list of texts.
        """
        with call():
            vectors_ND, refused = self._vectors(texts, pairs)
            refuse(refused, len(vectors_ND), on_refused)
        return vectors_ND

    def _vectors(self, texts: Any, pairs: Any) -> tuple[NDArray[np.float32], list[tuple[int, str, str]]]:
        return rows_of_texts(
            texts,
            pairs,
            self._spec,
            self.model,
            self.width,
            lambda clean: self._embedder.vectors(self._tokenizer.encode(clean.texts, clean.pairs)),
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table with its columns, then `embedding`, a list of D float32; null for a text that cannot be embedded.

        A column `embedding` of the table becomes `input_embedding`.

        Args:
            table: `pyarrow.Table` with the text column.

        Raises:
            ConfigError: it is no Arrow table, or lacks a column.
        """
        columns = self._spec.columns
        with call():
            vectors_ND, _ = self._vectors(
                texts_in(table, columns),
                None if columns.text_pair is None else column_of(table, columns.text_pair),
            )
            missing_N = pa.array(np.isnan(vectors_ND).any(axis=1))
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), self.width, mask=missing_N)
            added = pa.schema([pa.field(s.EMBEDDING, vectors.type)])
            return pa.table([*table.columns, vectors], schema=s.with_added(table.schema, added))
