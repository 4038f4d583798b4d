"""Runs that produce a model: labelled data, methods, workers, trials."""
