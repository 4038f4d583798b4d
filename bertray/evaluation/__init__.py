"""Figures with intervals, slices, baselines and comparisons: arrays in, plain data out; no ray, no torch."""
