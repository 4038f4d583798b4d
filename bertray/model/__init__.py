"""Bundles, tokenization, packing, the engine, heads, calibration, kernels: reviews to probabilities."""
