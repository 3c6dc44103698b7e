"""Scoring outside of the trainer, with jax, NumPy and flatbuffers alone."""

from rankax.serving.delta import DeltaError
from rankax.serving.features import FeatureError
from rankax.serving.scorer import Scorer

__all__ = ["DeltaError", "FeatureError", "Scorer"]
