"""Configs: one frozen, checked model per command; YAML files and overrides become one; help and schema."""

from bertray.config.commands import *  # noqa: F403 - the parts move into modules of their own next
from bertray.config.commands import _SYNONYMS as _SYNONYMS
