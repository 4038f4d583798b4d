"""Plain settings of the library and the sections of a config that they come from say the same."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

import pytest

from bertray import config
from bertray.model.new_encoder import EncoderShape, VocabularySettings
from bertray.reviews.clean import Cleaning
from bertray.settings import settings_of
from bertray.training.examples import Optimization, PretrainingSettings, TrainingSettings
from bertray.training.search_space import Range

PAIRS = [
    (Cleaning, config.Cleaning),
    (EncoderShape, config.NewEncoder),
    (VocabularySettings, config.NewVocabulary),
    (Optimization, config.Optimization),
    (TrainingSettings, config.Training),
    (PretrainingSettings, config.Pretraining),
]


@pytest.mark.parametrize(("plain", "section"), PAIRS, ids=lambda kind: kind.__name__)
def test_settings_have_the_types_and_defaults_of_their_section(plain, section):
    assert settings_of(plain, section()) == plain()
    hints, fields = get_type_hints(plain), section.model_fields
    for field in dataclasses.fields(plain):
        if field.name != "version":  # of Cleaning, whose only value is 1
            assert fields[field.name].annotation == hints[field.name], field.name


def test_values_of_a_section_are_taken_over_and_others_left():
    section = config.Training(epochs=7, max_failures=9, match_shares=True)
    assert settings_of(TrainingSettings, section) == TrainingSettings(epochs=7, match_shares=True)


def test_a_range_keeps_whole_ends_whole():
    found = settings_of(Range, config.SearchRange(low=1, high=8, log=True))
    assert found == Range(1, 8, log=True)
    assert found.is_whole


def test_cleaning_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 1"):
        Cleaning(version=2)
