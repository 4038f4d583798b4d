"""`bertray fetch`: a model with all that loading it needs, in a folder of one's own."""

from __future__ import annotations

import filecmp

import bertray
from bertray.cli import run
from bertray.model.bundle import resolve_model, weights_digest
from bertray.model.tokenization import ReviewTokenizer


def test_a_fetched_model_is_whole_and_the_same_again_is_success(tiny_encoder, tmp_path, capsys):
    output = tmp_path / "copied"
    assert run(["fetch", str(tiny_encoder), f"output={output}"]) == 0
    assert f"model    {output} (" in capsys.readouterr().out
    names = [path.name for path in tiny_encoder.iterdir()]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    assert filecmp.cmpfiles(tiny_encoder, output, names, shallow=False)[1:] == ([], [])
    assert weights_digest(resolve_model(str(output))) == weights_digest(tiny_encoder)
    assert ReviewTokenizer(output, 16).pad_id == ReviewTokenizer(tiny_encoder, 16).pad_id
    assert run(["fetch", f"model={tiny_encoder}", f"output={output}"]) == 0
    assert "already there" in capsys.readouterr().out
    (output / "model.safetensors").unlink()  # as a copy that was cut short
    result = bertray.fetch(tiny_encoder, output=str(output))
    assert (result.already_done, result.num_files) == (False, len(names))
    assert (output / "model.safetensors").is_file()


def test_what_lies_there_already_is_left_alone(tiny_encoder, tmp_path, capsys):
    output = tmp_path / "taken"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert run(["fetch", str(tiny_encoder), f"output={output}"]) == 4
    assert "expected an empty folder or this model, found notes.txt" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_a_hub_model_without_network_is_infrastructure(tmp_path, capsys):
    assert run(["fetch", "some-owner/some-model", f"output={tmp_path / 'model'}"]) == 7
    assert "the model hub cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert run(["fetch", "one", "two", f"output={tmp_path / 'model'}"]) == 2
    assert "expected one model, found 2" in capsys.readouterr().err
