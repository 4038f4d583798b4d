"""The config that `bertray init` proposes: data is inspected, then a commented config is rendered."""

from bertray.autoconfig.inspection import DataSummary, inspect_data
from bertray.autoconfig.render import Proposal, render_config

__all__ = ["DataSummary", "Proposal", "inspect_data", "render_config"]
