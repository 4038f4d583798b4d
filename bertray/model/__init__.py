"""From reviews to probabilities on one machine: tokenizer, packs, forward pass, calibration; no Ray."""
