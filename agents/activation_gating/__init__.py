"""Activation gating: networks that decide for single output activations, not block by block; and their training."""
