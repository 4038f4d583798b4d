"""Duplicates, leaks, contradictions and label errors of labelled reviews."""
