"""Configs: one frozen, checked model per command; YAML files and overrides become one; help and schema.

`commands` holds the models, `sections` and `training` their parts, `values` the types of values; `yaml_loader` reads
YAML, `overrides` merges sources, `describe` explains.
"""

# ruff: noqa: F403 - whoever reads a config finds all of it here
from bertray.config.commands import *
from bertray.config.describe import *
from bertray.config.overrides import *
from bertray.config.sections import *
from bertray.config.training import *
from bertray.config.values import *
