"""A trained model that labels texts in this process, or in the actors of `ray.data.Dataset.map_batches`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bertray import schema as s
from bertray.api.calls import call, device_of, plain
from bertray.api.texts import CleanTexts, OnRefused, of_pairs, refuse, rows_of_aspects, rows_of_texts
from bertray.config import Columns, ScoreConfig, build_config
from bertray.errors import ConfigError, ConflictError
from bertray.io.tables import one_chunk
from bertray.model.bundle import BundleInfo, resolve_model
from bertray.paths import local_path
from bertray.reviews.corpus import read_spec
from bertray.reviews.rows import RawRows
from bertray.reviews.screening import as_plain
from bertray.scoring.models import open_model
from bertray.trust.registry import resolve_registered

if TYPE_CHECKING:
    from bertray.runs.results import EvaluationResult


class Classifier:
    """A bundle, or a classifier of the model hub, that labels texts as `bertray score` does.

    Cleaning, `max_chars`, `max_length`, `long_text` and temperature are those of the bundle. A text that `score` would
    put in quarantine, such as one that is empty after cleaning, has no label: see `on_refused` of each method.

        classifier = bertray.Classifier.load("runs/first/model")
        classifier.predict(["Great film", "Never again"])

    The class itself goes to Ray Data; each actor then holds a model:

        reviews.map_batches(
            bertray.Classifier, fn_constructor_args=["runs/first/model"], batch_format="pyarrow", concurrency=2
        )

    Args:
        model: folder of a bundle, `<run>/model`, hub id (`name@revision`), `s3://`, `gs://` or `az://` prefix,
            `registry:NAME`, or the result of `train`.
        columns: `{"text": ..., "text_pair": ...}`, columns of tables that are labelled; by default `text`.
        aspects: that each review is read for, as for `score`; by default those that the model was trained for.
        max_length: as for `score`; by default the bundle's.
        long_text: as for `score`; by default the bundle's.
        precision: as for `score`; by default what the hardware does best.
        device: `cpu`, `cuda`, or `auto`: a GPU if this process sees one.
        registry: folder or prefix of the registry that `registry:NAME` stands in.

    Raises:
        ConfigError: there is no such model, or it is no classifier.
        InfrastructureError: the model hub or the object store cannot be reached.
    """

    def __init__(
        self,
        model: Any,
        *,
        columns: Mapping[str, str | None] | None = None,
        aspects: Sequence[str] | None = None,
        max_length: int | None = None,
        long_text: str | None = None,
        precision: str = "auto",
        device: str = "auto",
        registry: str | os.PathLike[str] | None = None,
    ) -> None:
        with call():
            on = device_of(device)
            keys = {
                "model": plain(getattr(model, "model", model)),  # of a result of `train`, too
                "registry": plain(registry),
                "max_length": max_length,
                "long_text": long_text,
                "precision": precision,
                "columns": {} if columns is None else plain(columns),
                "aspects": plain(aspects),
                "workers": {"use_gpu": on == "cuda"},
            }
            config = build_config("score", {**keys, "input": "texts", "output": "nothing"})
            assert isinstance(config, ScoreConfig)
            path = resolve_registered(config.model, config.registry)
            self._load(config.model_copy(update={"model": path}), on)
        self._given = model  # a result may own the model's files

    def _load(self, config: ScoreConfig, device: str) -> None:
        from bertray.model.predictor import Predictor
        from bertray.model.tokenization import ReviewTokenizer

        self.model = config.model
        self.info: BundleInfo = open_model(config)
        self._config, self._folder = config, resolve_model(config.model)
        self._spec = read_spec(
            config,
            self.info.cleaning,
            self.info.max_chars,
            wants_label=False,
            trained_for=self.info.aspects,
            text_columns=self.info.text_columns,
        )
        self._tokenizer = ReviewTokenizer(
            self._folder, config.max_length or self.info.max_length, config.long_text or self.info.long_text
        )
        self._predictor = Predictor(
            self._folder,
            temperature=self.info.temperature,
            device=device,
            precision=config.precision,
            int8_bound=self.info.int8_bound,
        )

    @classmethod
    def load(cls, model: Any, **keys: Any) -> Classifier:
        """The same as the class itself."""
        return cls(model, **keys)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the columns of `predict_proba`."""
        return self.info.labels

    @property
    def aspects(self) -> tuple[str, ...]:
        """Aspects that each review is read for; none of a model that reads a review once, or a column of lists."""
        return tuple(self._spec.aspects.label_columns) if self._spec.aspects else ()

    @property
    def model_version(self) -> str:
        """Digest of the bundle's files, as scored rows carry it."""
        return self.info.model_version

    def __repr__(self) -> str:
        return f"Classifier({self.model}, labels {', '.join(self.labels)}, version {self.model_version})"

    def predict(self, texts: Any, pairs: Any = None, *, on_refused: OnRefused = "raise") -> list[str | None]:
        """Label of each text: the class with the highest probability, a tie going to the lower id.

        Args:
            texts: list, Series or array of texts.
            pairs: the second texts, of a model that was trained on pairs: the aspect of each text.
            on_refused: for a text that cannot be scored, `raise`, or `null` for None in its place.

        Raises:
            DataRefused: names the texts that cannot be scored.
            ConfigError: `texts` is no list of texts.
        """
        probs_NC = self.predict_proba(texts, pairs, on_refused=on_refused)
        return self._labels_of(probs_NC).to_pylist()  # type: ignore[no-any-return]

    def predict_proba(self, texts: Any, pairs: Any = None, *, on_refused: OnRefused = "raise") -> NDArray[np.float32]:
        """Calibrated probabilities float32 [N, C], columns as `labels`; a row of NaN for a refused text.

        Arguments and errors as for `predict`.
        """
        with call():
            probs_NC, refused = self._probs(texts, pairs)
            refuse(refused, len(probs_NC), on_refused)
        return probs_NC

    def predict_aspects(self, texts: Any, *, on_refused: OnRefused = "raise") -> list[dict[str, str | None]]:
        """Label of each text for each of `aspects`: `[{"food": "positive", "service": "negative"}, …]`.

        Arguments and errors as for `predict`.

        Raises:
            ConfigError: the model reads a review once, or with one aspect a row.
        """
        if not self.aspects or self._spec.aspects is None:
            raise ConfigError(
                f"aspects: {self.model} was loaded without any.", "Load it with aspects=[...], if it reads pairs."
            )
        with call():
            rows = rows_of_aspects(texts, None, self._spec.aspects)
            probs_MC, refused = self._probs(rows.texts, rows.aspects)
            size = len(self.aspects)
            of_texts = {row // size: (row // size, reason, detail) for row, reason, detail in refused}
            refuse(list(of_texts.values()), len(probs_MC) // size, on_refused)
            labels = iter(self._labels_of(probs_MC).to_pylist())
        return [dict(zip(self.aspects, some, strict=True)) for some in zip(*[labels] * len(self.aspects), strict=True)]

    def _probs(self, texts: Any, pairs: Any) -> tuple[NDArray[np.float32], list[tuple[int, str, str]]]:
        """(probabilities with NaN for refused texts, those texts with their reasons)."""
        spec = self._spec
        if spec.aspects is not None:
            if pairs is None:
                raise ConfigError(
                    f"pairs: {self.model} reads a review for several aspects.",
                    "Call `predict_aspects`, or give the aspect of each text as `pairs`.",
                )
            spec = of_pairs(spec)
        return rows_of_texts(
            texts,
            pairs,
            spec,
            self.model,
            len(self.labels),
            self._probs_of,
        )

    def _probs_of(self, clean: CleanTexts) -> NDArray[np.float32]:
        tokens = self._tokenizer.encode(clean.texts, clean.pairs)
        if self._predictor.term_scorer is not None:
            tokens = self._predictor.term_scorer.appended_to(tokens, clean.texts, clean.pairs)
        return self._predictor.probs(tokens)

    def _labels_of(self, probs_NC: NDArray[np.float32]) -> pa.Array:
        """string [N], null for rows of NaN."""
        missing_N = np.isnan(probs_NC).any(axis=1)
        best_N = np.where(missing_N, 0, np.nan_to_num(probs_NC).argmax(axis=1)) if len(probs_NC) else missing_N
        indices = pa.array(np.asarray(best_N, np.int32), mask=missing_N)
        return pa.DictionaryArray.from_arrays(indices, pa.array(self.labels, pa.string())).cast(pa.string())

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table with its columns, then `label`, `score` (probability of the label) and `prob_<label>`.

        Rows keep their order and number: one that cannot be scored has nulls in the new columns. A column of the table
        with the name of a new one becomes `input_<name>`. With aspects each row is repeated, with a column `aspect`.

        Args:
            table: `pyarrow.Table` with the text column.

        Raises:
            ConfigError: it is no Arrow table, or lacks a column.
        """
        columns, aspects, told = self._spec.columns, self._spec.aspects, []
        with call():
            texts = texts_in(table, columns)
            pairs = None if columns.text_pair is None else column_of(table, columns.text_pair)
            if aspects is not None:
                lists = None if aspects.column is None else as_plain(one_chunk(column_of(table, aspects.column)))
                rows = rows_of_aspects(texts, lists, aspects)
                table, texts, pairs = table.take(pa.array(rows.which_M)), rows.texts, rows.aspects
                told = [rows.aspects]
            probs_NC, _ = self._probs(texts, pairs)
            missing_N = np.isnan(probs_NC).any(axis=1)
            score_N = probs_NC.max(axis=1) if len(probs_NC) else np.empty(0, np.float32)
            added = [*told, self._labels_of(probs_NC), pa.array(score_N, mask=missing_N)]
            added += [pa.array(np.ascontiguousarray(probs_C), mask=missing_N) for probs_C in probs_NC.T]
            schema = s.labelled_schema(table.schema, list(self.labels), aspect=aspects is not None)
            return pa.table([*table.columns, *added], schema=schema)

    def evaluate(self, data: Any, **keys: Any) -> EvaluationResult:
        """Figures on labelled reviews, by `bertray.evaluate`.

        Args:
            data: path, list of paths, or table with the columns `text` and `label`.
            keys: of `bertray evaluate`; `max_length`, `long_text`, `precision`, `columns` and `aspects` are those of
                this object.
        """
        import bertray

        mine: dict[str, Any] = {"max_length": self._config.max_length, "long_text": self._config.long_text}
        mine |= {"precision": self._config.precision, "columns": self._spec.columns.model_dump()}
        mine["aspects"] = self._config.aspects
        return bertray.evaluate(self.model, data, **{**mine, **keys})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the model's files into a new folder, whole or not at all; returns its path.

        Raises:
            ConflictError: the folder holds something.
        """
        with call():
            target = local_path(str(plain(folder)))
            if target.exists() and not (target.is_dir() and not any(target.iterdir())):
                raise ConflictError(f"{target}: not empty.", "Choose a new folder.")
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                shutil.copytree(self._folder, aside / "model")  # links of a hub's cache become files
                if target.exists():
                    target.rmdir()
                (aside / "model").rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return target


def texts_in(table: Any, columns: Columns) -> pa.ChunkedArray:
    """Reviews of an Arrow table, of one column or of several read as one text.

    Raises:
        ConfigError: as `column_of`.
    """
    if len(columns.texts) == 1:
        return column_of(table, columns.texts[0])
    texts = {name: as_plain(one_chunk(column_of(table, name))) for name in columns.texts}
    rows = RawRows(np.arange(len(table)), texts).joined(columns.texts, columns.text_name)
    return pa.chunked_array([rows.columns[columns.text_name]])


def column_of(table: Any, name: str) -> pa.ChunkedArray:
    """A column of an Arrow table.

    Raises:
        ConfigError: not an Arrow table, or no such column.
    """
    if not isinstance(table, pa.Table):
        raise ConfigError(
            f"expected a pyarrow.Table, found {type(table).__name__}.", "With Ray Data set batch_format='pyarrow'."
        )
    if table.column_names.count(name) != 1:
        found = ", ".join(map(repr, table.column_names[:20])) or "none"
        raise ConfigError(
            f"expected one column {name!r} of texts, found columns {found}.",
            "Set `columns` to the one that holds them.",
        )
    return table[name]
