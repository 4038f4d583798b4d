"""Plain settings of the library and the sections of a config that they come from say the same."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

import pytest

from bertray import config
from bertray.model.new_encoder import EncoderShape, VocabularySettings
from bertray.reviews.clean import Cleaning
from bertray.runs.fit.scheduled import NUMBERS
from bertray.settings import settings_of
from bertray.training.examples import LoraSettings, PretrainingSettings, TrainingSettings
from bertray.training.search_space import Range

PAIRS = [
    (Cleaning, config.Cleaning),
    (EncoderShape, config.NewEncoder),
    (VocabularySettings, config.NewVocabulary),
    (LoraSettings, config.Lora),
    (TrainingSettings, config.Training),
    (PretrainingSettings, config.Pretraining),
]
# Fields of a section that its plain settings lack, since the run reads them and the library does not.
OF_THE_CONFIG_ALONE = {
    config.Training: {"max_failures", "method", "head", "pooling", "max_feature_rows", "teacher", "keep_layers"}
    | {"encoder_weight", "class_bias", "seeds", "steps"},
    config.Pretraining: {"max_failures"},
}


@pytest.mark.parametrize(("plain", "section"), PAIRS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_section_reaches_the_library_or_is_named_here(plain, section):
    lacking = set(section.model_fields) - {field.name for field in dataclasses.fields(plain)}
    assert lacking == OF_THE_CONFIG_ALONE.get(section, set())


@pytest.mark.parametrize(("plain", "section"), PAIRS, ids=lambda kind: kind.__name__)
def test_settings_have_the_types_and_defaults_of_their_section(plain, section):
    stated = dict(zip(NUMBERS, (3, 5e-5, 32, 0.1), strict=True)) if "epochs" in section.model_fields else {}
    assert settings_of(plain, section(**stated)) == plain(**stated)
    hints, fields = get_type_hints(plain), section.model_fields
    by_rule = NUMBERS if section is config.Training else ()
    for field in dataclasses.fields(plain):
        nested = dataclasses.is_dataclass(hints[field.name])  # a pair of its own
        if field.name not in {"version", *by_rule} and not nested:  # of Cleaning there is one version
            assert fields[field.name].annotation == hints[field.name], field.name


def test_values_of_a_section_are_taken_over_and_others_left():
    numbers: dict[str, Any] = {"epochs": 7, "learning_rate": 5e-5, "batch_size": 32, "warmup_ratio": 0.1}
    section = config.Training(max_failures=9, match_shares=True, **numbers)
    assert settings_of(TrainingSettings, section) == TrainingSettings(**numbers, match_shares=True)


def test_a_range_keeps_whole_ends_whole():
    found = settings_of(Range, config.SearchRange(low=1, high=8, log=True))
    assert found == Range(1, 8, log=True)
    assert found.is_whole


def test_cleaning_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 1"):
        Cleaning(version=2)
