"""Backbones in Flax Linen with T5X parameter paths."""
