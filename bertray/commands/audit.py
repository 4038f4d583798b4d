"""`bertray audit`: duplicates, leaks, conflicting and doubtful labels, broken rows."""

from __future__ import annotations

from bertray.config import AuditConfig
from bertray.console import say
from bertray.runs.data_audit import audit


def run_audit(config: AuditConfig) -> int:
    """Audit, and print the first sentence of each finding."""
    result = audit(config)
    if result.already_done:
        say(f"already audited: {result.report}")
        return 0
    for finding in result.findings:
        say(f"{finding.weight:>14}  {finding.title}: {finding.sentences[0]}")
    say(f"report   {result.report}")
    return 0
