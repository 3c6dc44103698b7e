"""Scoring outside of the trainer, with jax, NumPy and flatbuffers alone."""

from rankax.serving.features import FeatureError
from rankax.serving.scorer import Scorer

__all__ = ["FeatureError", "Scorer"]
