"""Release gate and registry of models."""
