"""From templates to a page: everything is escaped, numbers are written one way, nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bertray.evaluation.intervals import Estimate
from bertray.reports.plain import visible
from bertray.wording import count, decimal, duration, percent, points, signed

TEMPLATES = Path(__file__).parent / "templates"
_CODE = re.compile("`([^`]+)`")
BUNDLED = "all-MiniLM-L6-v2"  # name of the model behind `bundled`


def render(template: str, *, report: Any, title: str, intervals: bool, **values: Any) -> str:
    """Fill `templates/<template>`.

    Args:
        report: `created`, a date first, is added to a title that does not hold it.
        title: model and data of the page.
        intervals: whether the page shows any, so that the footer explains them.
        values: the rest of the template's.
    """
    date = report.created[:10]
    dated = title if date in title else f"{title}, {date}"
    return _environment().get_template(template).render(report=report, title=dated, intervals=intervals, **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # reviews, ids and paths are other people's text
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "change": signed,
        "count": count,
        "decimal": decimal,
        "points": points,
        "percent": lambda share: tight(percent(share)),
        "percent_range": percent_range,
        "range": value_range,
        "seconds": duration,
        "prose": prose,
        "tight": tight,
    }
    return environment


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def created_now() -> str:
    """`2026-11-30 14:05 UTC`, for `created` of a report."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def model_title(model: str) -> str:
    """A `model` value as titles call it: a hub id, a run's name, a folder's name."""
    if model == "bundled":
        return BUNDLED
    parts = [part for part in model.rstrip("/").split("/") if part]
    if len(parts) > 1 and parts[-1] == "model":  # of a run: every run calls it so
        return parts[-2]
    is_hub_id = len(parts) == 2 and not model.startswith(("/", ".", "~"))
    return "/".join(parts) if is_hub_id else (parts or [model])[-1]


def data_title(paths: Sequence[str]) -> str:
    """Files, folders or globs as titles call them: the first by its folder and name, the others by their number."""
    first, *others = paths
    name = "/".join(part for part in first.rstrip("/").split("/") if part and ":" not in part)
    return "/".join(name.split("/")[-2:]) + (f" and {len(others)} more" if others else "")


def value_range(estimate: Estimate) -> str:
    """`0.864 to 0.874`."""
    return f"{decimal(estimate.low)} to {decimal(estimate.high)}"


def percent_range(estimate: Estimate) -> str:
    """`86.4 to 87.4 %`."""
    return tight(f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f} %")


def prose(text: str) -> Markup:
    """A sentence with what stands in backticks as code; everything else of it is escaped."""
    escaped = str(escape(visible(tight(text))))
    return Markup(_CODE.sub(r"<code>\1</code>", escaped))  # noqa: S704 - escaped above


def tight(text: str) -> str:
    """No line break between a number and its per cent sign."""
    return text.replace(" %", "\u00a0%")
