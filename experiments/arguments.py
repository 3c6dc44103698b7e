"""The part after the colon of --config=experiments/FILE.py:MODEL-HISTORY."""

from collections.abc import Iterable
import dataclasses

from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import ExperimentConfig, MeanPoolingConfig
from rankax.data.card import Field, SequenceField
from rankax.models import backbones  # noqa: F401  registers the names
from rankax.models.base import named_config, registered
from rankax.models.sequences.din import DINConfig

HISTORIES = ("din", "mean", "none")


def parse(
    arg: str, *, default: str, allowed: tuple[str, ...] = HISTORIES
) -> tuple[str, str]:
    """Returns the names of the model and of what becomes of its histories.

    Args:
        arg: "dcnv2-din", or "dcnv2" for the default's history; "" = `default`.
        default: a model and a history.
        allowed: the histories that the experiment knows.

    Raises:
        ConfigError: no such history.
    """
    model, _, history = (arg or default).partition("-")
    history = history or default.partition("-")[2]
    if history not in allowed:
        raise ConfigError(
            f"{arg!r}: history {history!r} is not for this experiment; "
            f"{suggest(history, allowed)}"
        )
    return model, history


def without_sequences(fields: Iterable[Field]) -> tuple[str, ...]:
    """Returns the names of the fields that are no sequences."""
    return tuple(f.name for f in fields if not isinstance(f, SequenceField))


def set_model(config: ExperimentConfig, model: str, history: str, **options) -> None:
    """Sets backbone and sequence encoder.

    The options are the backbone's; what only other backbones have (FM has no dropout)
    is left out.
    """
    known = {f.name for cls in registered().values() for f in dataclasses.fields(cls)}
    lacking = known - {f.name for f in dataclasses.fields(named_config(model))}
    own = {name: value for name, value in options.items() if name not in lacking}
    config.model.backbone = named_config(model, **own)
    config.model.sequence = (
        DINConfig(hidden_dims=(32, 16)) if history == "din" else MeanPoolingConfig()
    )
