"""Messages of a night to where people look: a webhook, or a command of the machine; without any text of reviews."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0


def send(target: str, content: Mapping[str, Any]) -> bool:
    """Post JSON to an http(s) address, or give it to a command on its standard input; what fails is logged.

    Args:
        target: value of the key `notify`.
        content: plain values; `text` is the headline, as chat services read it.

    Returns:
        Whether it arrived.
    """
    body = json.dumps(content, ensure_ascii=False).encode()
    try:
        if target.startswith(("http://", "https://")):
            request = urllib.request.Request(target, body, {"Content-Type": "application/json"})  # noqa: S310 - http(s)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310 - checked above
                pass
        else:
            subprocess.run(shlex.split(target), input=body, timeout=TIMEOUT_S, check=True, capture_output=True)  # noqa: S603 - the user's own command
    except (OSError, ValueError, subprocess.SubprocessError, urllib.error.URLError) as error:
        log.warning("notify: %s could not be told (%s)", _shown(target), type(error).__name__)
        return False
    return True


def _shown(target: str) -> str:
    """The target without what may be a secret: an address up to its host, a command up to its name."""
    if "://" in target:
        scheme, _, rest = target.partition("://")
        return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"
    return target.split()[0] if target.split() else target
