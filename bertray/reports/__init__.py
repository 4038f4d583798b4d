"""Pages and JSON from plain data: what was evaluated, what was scored; no ray, no torch."""
