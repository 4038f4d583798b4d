"""`bertray pretrain`: an encoder that knows the language of unlabelled reviews."""

from __future__ import annotations

from bertray.config import PretrainConfig
from bertray.console import say
from bertray.runs.fit.pretraining import pretrain


def run_pretrain(config: PretrainConfig) -> int:
    """Pretrain, and print the perplexity before and after."""
    result = pretrain(config)
    if result.already_done:
        say(f"already pretrained: {result.report}")
        return 0
    say(result.headline)
    say(f"model    {result.model}")
    say(f"report   {result.report}")
    return 0
