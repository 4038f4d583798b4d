"""Tiny classifiers of every family, as the tests of the model have them."""

from tests.model.conftest import make_classifier

__all__ = ["make_classifier"]
