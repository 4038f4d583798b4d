"""Whole runs, one module a verb: from a config to what is written."""
