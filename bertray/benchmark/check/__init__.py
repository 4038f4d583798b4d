"""Is bertray right and fast on this device? `python -m bertray.benchmark.check`, without Ray, network or tokenizer."""
