"""A config proposed from a look at the data."""
