"""Loading: no code is run, what a model lacks is refused by name, and two readings of one tokenizer are the same."""

from __future__ import annotations

import ast
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bertray
from bertray.errors import ConfigError, InfrastructureError
from bertray.model.bundle import read_info, resolve_model
from bertray.model.pretrained.files import check_files, reading
from bertray.model.pretrained.tokenizer import (
    check_tokenizer,
    load_tokenizer,
    load_transformers_tokenizer,
    save_tokenizer,
)
from bertray.model.pretrained.weights import (
    load_classifier,
    load_config,
    load_encoder,
    load_for_training,
    longest_input,
    most_positions,
    single_label_classes,
)

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
Change = Callable[[Path], object]


@pytest.fixture
def folder(plain_classifier) -> Path:
    return plain_classifier(3)


def edited(name: str = "config.json", without: tuple[str, ...] = (), **fields: Any) -> Change:
    def change(folder: Path) -> None:
        content = {**json.loads((folder / name).read_text("utf-8")), **fields}
        (folder / name).write_text(json.dumps({key: content[key] for key in content if key not in without}), "utf-8")

    return change


def weights(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor] | None]) -> Change:
    def rewrite(folder: Path) -> None:
        found = [change(*item) for item in load_file(folder / "model.safetensors").items()]
        kept = {name: tensor.contiguous() for name, tensor in filter(None, found)}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def added(*names: str) -> Change:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors") | dict.fromkeys(names, torch.ones(3))
        save_file({k: v.clone() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def without(word: str) -> Change:
    return weights(lambda name, tensor: None if word in name else (name, tensor))


def written(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def tokenizer_json(change: Callable[[dict[str, Any]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")

    return rewrite


# --- one module reads models ------------------------------------------------------------------------------------------


def test_no_other_module_has_a_library_read_a_model():
    """What is loaded elsewhere would be loaded without the checks; the rivals of the benchmark at least run no code."""
    root = Path(bertray.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
            loads = called in ("from_pretrained", "from_file", "snapshot_download_model")
            loads |= called == "from_config" and owner != "LabelMap"
            if name.startswith("benchmark/") and (loads or called == "pipeline"):
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert safe.get("trust_remote_code") == "False", f"{name}:{node.lineno}"
            elif loads:
                assert name.startswith("model/pretrained/"), f"{name}:{node.lineno}: {owner}.{called}"


@pytest.mark.parametrize(
    "change",
    [
        edited(model_type="new", auto_map={"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.C"}),
        edited(model_type="new", auto_map={"AutoModel": "code.C"}),
        edited("tokenizer_config.json", tokenizer_class="New", auto_map={"AutoTokenizer": ["code.C", None]}),
        edited("tokenizer_config.json", tokenizer_class="New", auto_map={"AutoTokenizer": [None, "code.C"]}),
        both(
            edited("tokenizer_config.json", without=("tokenizer_class",)),
            edited(tokenizer_class="New", auto_map={"AutoTokenizer": ["code.C", None]}),
        ),
        both(
            edited("tokenizer_config.json", tokenizer_class="New", auto_map={"AutoTokenizer": ["code.C", None]}),
            lambda folder: (folder / "tokenizer.json").rename(folder / "vocab.json"),
        ),
    ],
)
def test_a_folder_that_needs_its_own_code_is_refused_and_none_is_run(change, folder, monkeypatch, capsys):
    change(folder)
    written("code.py", f"open({str(folder / 'ran')!r}, 'w').close()\nclass C: pass\n")(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ConfigError, match="needs Python code that lies in the folder"):
        read_info(resolve_model(str(folder)))
    load = (
        load_classifier
        if json.loads((folder / "config.json").read_text())["model_type"] == "new"
        else load_transformers_tokenizer
    )
    with pytest.raises(ConfigError, match="needs Python code that lies in the folder"):
        load(folder)
    assert not (folder / "ran").exists()
    assert "custom code" not in capsys.readouterr().out


def test_an_architecture_that_transformers_has_is_used_whatever_code_lies_beside_it(folder, monkeypatch):
    edited(auto_map={"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.C", "AutoModel": "code.C"})(
        folder
    )
    edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.C", None]})(folder)
    written("code.py", f"open({str(folder / 'ran')!r}, 'w').close()\nclass C: pass\n")(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    read_info(resolve_model(str(folder)))
    assert type(load_classifier(folder)).__name__ == "BertForSequenceClassification"
    assert type(load_encoder(folder)).__name__ == "BertModel"
    assert not (folder / "ran").exists()


# --- files that cannot be used ----------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def in_two_parts(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {name: names[number % 2] for number, name in enumerate(sorted(tensors))}
    for part in names:
        save_file({name: tensors[name] for name in tensors if places[name] == part}, folder / part, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def removed(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "gone")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(
            (written(name, POINTER), rf"{name} is a pointer of Git LFS.*lfs pull")
            for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
        ),
        (both(in_two_parts, written("model-00002-of-00002.safetensors", POINTER)), "00002.safetensors is a pointer"),
        (cut, r"expected [\d,]+ bytes in model.safetensors, as its header says"),
        (written("model.safetensors", b""), "no whole safetensors file"),
        (written("model.safetensors", "<html>404</html>" * 9), "no whole safetensors file"),
        (both(in_two_parts, removed("model-00002-of-00002.safetensors")), "model-00002-of-00002.* is not there"),
        (both(in_two_parts, removed("model.safetensors.index.json")), "index.json is not there"),
        (to_nothing, "model.safetensors is a link to nothing"),
        (written("config.json", b"\xef\xbb\xbf{}"), "expected JSON in config.json"),
        (written("tokenizer_config.json", '{"a":'), "expected JSON in tokenizer_config.json"),
        (edited(hidden_dropout_prob=float("nan")), "NaN is no number of JSON"),
        (edited(quantization_config={"quant_method": "bitsandbytes"}), "full precision.*bitsandbytes"),
        (edited(quantization_config={"quant_method": "gptq", "bits": 4}), "full precision.*gptq"),
        (weights(lambda name, x: (name, x.to(torch.int8) if x.dim() == 2 else x)), "full precision, found I8"),
        (weights(lambda name, x: (name, x.to(torch.float8_e4m3fn) if x.dim() == 2 else x)), "found F8_E4M3"),
        (written("adapter_config.json", "{}"), "an adapter of PEFT"),
        (edited(transformers_weights="adapter_model.bin"), "found transformers_weights 'adapter_model.bin'"),
    ],
)
def test_a_damaged_folder_is_refused_before_any_library_reads_it(change, said, folder):
    change(folder)
    with pytest.raises(ConfigError, match=said):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited(model_type=["bert"]), r"config.json: transformers [\d.]+ has no architecture \['bert'\]"),
        (edited(model_type="bret"), r"config.json: transformers [\d.]+ has no architecture 'bret'"),
        (edited(without=("model_type",)), "config.json: cannot be used"),
        (edited(max_position_embeddings=None), "config.json: cannot be used.*max_position_embeddings"),
        (edited(max_position_embeddings="many"), "config.json: cannot be used.*max_position_embeddings"),
        (edited(hidden_size="32"), "config.json: cannot be used.*hidden_size"),
        (written("tokenizer.json", '{"a":'), "tokenizer.json: cannot be used"),
        (written("tokenizer.json", ""), "tokenizer.json: cannot be used"),
        (tokenizer_json(lambda content: content["model"].update(type="Newer")), "tokenizer.json: cannot be used"),
        (tokenizer_json(lambda content: content["model"].update(unk_token="?")), "cannot be used .*Missing"),
    ],
)
def test_what_a_library_cannot_read_is_a_configuration_error_that_names_the_file(change, said, folder):
    change(folder)
    with pytest.raises(ConfigError, match=said):
        read_info(resolve_model(str(folder)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edited(hidden_act="swishy"), "cannot be used.*swishy"),
        (edited(num_attention_heads=5), "not a multiple of the number of attention heads"),
        (edited(pad_token_id=9999), "cannot be used.*Padding_idx"),
        (edited(num_hidden_layers=0), "expected at least one layer as num_hidden_layers, found 0"),
    ],
)
def test_a_config_of_which_no_model_can_be_made_is_a_configuration_error(change, said, folder):
    change(folder)
    for load in (load_classifier, load_encoder, lambda folder: load_for_training("MaskedLM", folder)):
        with pytest.raises(ConfigError, match=said):
            load(folder)


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
def test_an_attention_implementation_that_a_config_names_is_not_used(field, folder):
    fields: dict[str, Any] = {field: "flash_attention_2"}
    edited(**fields)(folder)
    assert load_config(folder)._attn_implementation is None
    assert load_classifier(folder).config._attn_implementation != "flash_attention_2"


def test_no_memory_and_no_space_stay_what_they_are_and_a_failing_disk_is_no_wrong_model(tmp_path):
    for error in (MemoryError(), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()):
        with pytest.raises(type(error)), reading(tmp_path):
            raise error
    with pytest.raises(InfrastructureError, match="Input/output error"), reading(tmp_path):
        raise OSError(errno.EIO, "Input/output error")
    with pytest.raises(ConfigError, match="Permission denied"), reading(tmp_path):
        raise OSError(errno.EACCES, "Permission denied")
    with pytest.raises(InfrastructureError, match="as it was"), reading(tmp_path):
        raise InfrastructureError("as it was")


# --- weights ----------------------------------------------------------------------------------------------------------

LAYER = ".layer.1."
RENAMED = weights(lambda name, tensor: (f"module.net.{name}", tensor))


@pytest.mark.parametrize(
    ("change", "classifier", "encoder", "trained"),
    [
        (without("classifier."), "lacks 2 weights of .*: classifier.bias, classifier.weight", None, None),
        (without("classifier.bias"), "lacks 1 weights of .*: classifier.bias", None, None),
        (without("pooler."), "lacks 2 weights of .*: bert.pooler", None, None),
        (without(LAYER), *(["lacks 16 weights of .*layer.1."] * 3)),
        (RENAMED, *(["lacks .*embeddings.*; nothing reads its module.net.bert.embeddings"] * 3)),
        (edited(id2label={"0": "a", "1": "b"}), "in another shape 2 weights of .*classifier", None, None),
        (edited(id2label={str(i): f"c{i}" for i in range(4)}), "in another shape 2 weights", None, None),
        (edited(intermediate_size=24), *(["in another shape .*intermediate.dense"] * 3)),
        (edited(max_position_embeddings=80), *(["in another shape 1 .*position_embeddings"] * 3)),
        (edited(num_hidden_layers=1), *(["weights of more layers than its config.json says: .*layer.1."] * 3)),
        (added(f"bert.encoder{LAYER}attention.self.distance_embedding.weight"), *(["that nothing reads: .*dist"] * 3)),
        (added(f"bert.encoder{LAYER}output.adapters.a.down.weight"), *(["its layers that nothing reads: .*down"] * 3)),
        (added("bert.embeddings.position_ids", "cls.0.weight", "qa.1.bias"), None, None, None),
        (weights(lambda name, tensor: (name, tensor.half())), None, None, None),
        (weights(lambda name, x: (name, x / 0 if LAYER in name else x)), None, None, "16 weights that are not finite"),
        (in_two_parts, None, None, None),
    ],
)
def test_weights_that_would_be_drawn_at_random_are_refused(change, classifier, encoder, trained, folder):
    change(folder)
    loads: list[tuple[str | None, Callable[[Path], object]]] = [
        (classifier, load_classifier),
        (encoder, load_encoder),
        (trained, lambda folder: load_for_training("SequenceClassification", folder)),
        (trained, lambda folder: load_for_training("MaskedLM", folder)),
    ]
    for said, load in loads:
        if said is None:
            load(folder)
        else:
            with pytest.raises(ConfigError, match=said):
                load(folder)


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problem_type": "multi_label_classification"}, "found problem_type 'multi_label_classification'"),
        ({"problem_type": "regression"}, "found problem_type 'regression'"),
        ({"function_to_apply": "sigmoid"}, "found function_to_apply 'sigmoid'"),
        ({"id2label": {"0": "score"}}, "at least two classes, found 1"),
        ({"id2label": {}}, "at least two classes, found 0"),
        ({"id2label": None, "num_labels": 1}, "at least two classes, found 1"),
        ({"id2label": {"0": "neg", "1": "pos", "2": "pos"}}, "each class in id2label, found 'pos' and 'pos'"),
        ({"id2label": {"0": "neg", "1": "Pos", "2": "pos "}}, "found 'Pos' and 'pos '"),
        ({"id2label": {"0": "neg", "1": " "}}, "found ' '"),
        ({"id2label": {"0": "neg", "00": "x", "1": "pos"}}, "expected each id once in id2label, found 0, 00, 1"),
        ({"id2label": {"1": "neg", "2": "pos"}}, r"expected ids 0 to 1 in id2label, found \[1, 2\]"),
        ({"id2label": {"0": "neg", "2": "pos"}}, r"expected ids 0 to 1 in id2label, found \[0, 2\]"),
        ({"id2label": {"neg": 0, "pos": 1}}, "expected numbers as keys of id2label"),
        ({"id2label": ["neg", "pos"]}, "expected an object as id2label, found a list"),
        ({"id2label": {"0": "neg", "1": None}}, "found null"),
        ({"id2label": {"0": "neg", "1": {"en": "pos"}}}, 'found {"en": "pos"}'),
        ({"id2label": {"0": "neg", "1": "pos"}, "num_labels": 3}, "expected 3 names in id2label"),
        (
            {"id2label": {"0": "neg", "1": "pos"}, "label2id": {"pos": 0, "neg": 1}},
            "do not agree: 'neg' is 0 in the first and 1 in the second",
        ),
    ],
)
def test_a_head_that_gives_no_single_label_is_refused(change, said, folder):
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(ConfigError, match=said):
        single_label_classes({**config, **change}, "m")
    edited(**change)(folder)
    with pytest.raises(ConfigError, match=said):
        read_info(folder)


@pytest.mark.parametrize(
    ("config", "classes"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"1": "pos", "0": "neg"}}, ("neg", "pos")),
        ({"id2label": {"0": 1, "1": 2}, "problem_type": "single_label_classification"}, ("1", "2")),
    ],
)
def test_classes_of_a_single_label_head(config, classes):
    assert single_label_classes(config, "m") == classes


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "longest"),
    [
        ("bert", {}, 130),
        ("roberta", {}, 128),
        ("roberta", {"pad_token_id": 0}, 129),
        ("mpnet", {}, 128),
        ("longformer", {"attention_window": 16}, 128),
        ("luke", {"entity_vocab_size": 4, "entity_emb_size": 8}, 128),
        ("nystromformer", {}, 130),
        ("xlnet", {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 8}, None),
        ("t5", {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 8}, None),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 130}, 130),
    ],
)
def test_the_longest_input_is_what_the_position_embeddings_hold(kind, fields, longest, tmp_path):
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes |= {"vocab_size": 60, "max_position_embeddings": 130}
    plain = {"vocab_size": 60} if kind in ("xlnet", "t5", "gpt2") else sizes
    config = AutoConfig.for_model(kind, **{**plain, **fields})
    config.save_pretrained(tmp_path)
    assert longest_input(tmp_path) == longest
    with torch.device("meta"):
        assert most_positions(AutoModel.from_config(config)) == longest


def test_a_pad_token_of_minus_one_is_none(folder):
    edited(pad_token_id=-1)(folder)
    assert load_config(folder).pad_token_id is None


# --- tokenizers -------------------------------------------------------------------------------------------------------


def one_type_for_both_texts(content: dict[str, Any]) -> None:
    for piece in content["post_processor"]["pair"]:
        next(iter(piece.values()))["type_id"] = 0


def vocabulary_of_another_order(folder: Path) -> None:
    words = load_tokenizer(folder).get_vocab()
    lines = sorted(words, key=words.__getitem__)
    lines[6], lines[7] = lines[7], lines[6]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (tokenizer_json(lambda t: t["normalizer"].update(lowercase=False)), "do not agree: 'The film was GREAT"),
        (tokenizer_json(lambda t: t["normalizer"].update(strip_accents=False)), "do not agree: '.*é"),
        (tokenizer_json(lambda t: t["normalizer"].update(handle_chinese_chars=False)), "do not agree: '电影"),
        (tokenizer_json(lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(ids=[4])), "do not agree: ''"),
        (tokenizer_json(lambda t: t["added_tokens"].pop()), r"do not agree: .*\[MASK\]"),
        (edited("tokenizer_config.json", do_lower_case=False), "do not agree: 'The film was GREAT"),
        (tokenizer_json(one_type_for_both_texts), r"has the token types \["),
        (vocabulary_of_another_order, "tokenizer.json and vocab.txt do not agree: "),
    ],
)
def test_tokenizer_files_that_disagree_are_refused_with_a_text_that_shows_it(change, said, folder):
    check_tokenizer(folder, "m")
    change(folder)
    with pytest.raises(ConfigError, match=said):
        check_tokenizer(folder, "m")
    with pytest.raises(ConfigError, match=said):
        read_info(folder)


@pytest.mark.parametrize(("order", "said"), [(1, None), (-1, "tokenizer.json and merges.txt do not agree: 'merge 0'")])
def test_merges_beside_a_tokenizer_are_those_that_it_uses(order, said, make_classifier, tokenizer_folders, tmp_path):
    folder = tmp_path / "roberta"
    shutil.copytree(make_classifier("roberta", 3), folder)
    shutil.copytree(tokenizer_folders["roberta"], folder, dirs_exist_ok=True)
    edited(vocab_size=300)(folder)
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    lines = [" ".join(merge) for merge in model["merges"]]
    written("vocab.json", json.dumps(model["vocab"]))(folder)
    written("merges.txt", "\n".join(["#version: 0.2", *lines[::order], ""]))(folder)
    if said is None:
        check_tokenizer(folder, "m")
    else:
        with pytest.raises(ConfigError, match=said):
            check_tokenizer(folder, "m")


@pytest.mark.parametrize("longest", [15, 30, 60, 110, 200])
def test_tokenizer_files_agree_on_the_longest_word_too(longest, tiny_encoder, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)
    check_tokenizer(folder, "m")
    tokenizer_json(lambda content: content["model"].update(max_input_chars_per_word=longest))(folder)
    with pytest.raises(ConfigError, match="do not agree: 'snake_case"):
        check_tokenizer(folder, "m")


@pytest.mark.parametrize("kept", ["AutoTokenizer", "PreTrainedTokenizerFast"])
def test_each_remedy_makes_the_files_agree(kept, folder):
    import transformers

    tokenizer_json(lambda content: content["normalizer"].update(lowercase=False))(folder)
    before = load_tokenizer(folder).encode("The film").ids
    getattr(transformers, kept).from_pretrained(folder).save_pretrained(folder)
    check_tokenizer(folder, "m")
    assert (load_tokenizer(folder).encode("The film").ids == before) is (kept == "PreTrainedTokenizerFast")


def test_ids_beyond_the_embeddings_are_refused(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<emoji{i}>" for i in range(60)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"expected token ids below 60, .* beyond: '<emoji\d+>' is 60"):
        check_tokenizer(folder, "m")


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "deberta-v2", "modernbert", "distilbert", "electra"])
def test_the_tokenizer_of_a_trained_model_is_the_one_that_training_used(family, tokenizer_folders, tmp_path):
    source = tokenizer_folders[family]
    used = load_tokenizer(source)
    save_tokenizer(source, tmp_path)
    texts = ["The film was GOOD, Café!", "<s> [CLS] x", "电影 a", ""]
    for tokenizer in (load_tokenizer(tmp_path), load_transformers_tokenizer(tmp_path).backend_tokenizer):
        assert [tokenizer.encode(text).ids for text in texts] == [used.encode(text).ids for text in texts]
    assert (tmp_path / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_tokenizer_of_a_vocabulary_alone_is_written_as_it_was_used(tiny_encoder, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    for name in ("vocab.txt", "config.json"):
        shutil.copy(tiny_encoder / name, source / name)
    shutil.copy(tiny_encoder / "config.json", target / "config.json")
    ids = load_tokenizer(source).encode("The film was GREAT").ids
    save_tokenizer(source, target)
    assert load_tokenizer(target).encode("The film was GREAT").ids == ids
    check_tokenizer(target, "m")


def test_a_tokenizer_that_would_be_read_otherwise_is_an_error_at_the_end_too(folder, tmp_path):
    tokenizer_json(lambda content: content["normalizer"].update(lowercase=False))(folder)
    (tmp_path / "target").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "target")
    with pytest.raises(ConfigError, match="do not agree: 'The film was GREAT"):
        save_tokenizer(folder, tmp_path / "target")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("name", ["BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer"])
def test_a_tokenizer_in_python_is_named_whatever_package_it_would_need(name, file, tiny_encoder, tmp_path):
    for found in ("vocab.txt", "config.json", "tokenizer_config.json"):
        shutil.copy(tiny_encoder / found, tmp_path / found)
    edited("tokenizer_config.json", without=("tokenizer_class", "backend"))(tmp_path)
    edited(file, tokenizer_class=name)(tmp_path)
    with pytest.raises(ConfigError, match=rf"found a Python-only one \({name}\)"):
        check_tokenizer(tmp_path, "m")


def test_a_package_that_a_tokenizer_needs_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"needs the package fugashi.*pip install fugashi"), reading(tmp_path):
        raise ModuleNotFoundError("You need to install fugashi. See https://... : pip install fugashi")
    with pytest.raises(ConfigError, match=r"needs the package google.protobuf"), reading(tmp_path):
        raise ImportError("No module named 'google.protobuf'")


def test_a_healthy_folder_passes_every_check(folder):
    check_files(folder, "m")
    info = read_info(resolve_model(str(folder)))
    assert info.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert info.max_length == 40
