"""The real train step, compiled for devices that need not be there.

What `rankax.train` runs (lookup, forward, backward, dense optimizer, in-place row
update) is traced on shapes alone, compiled, and asked what it takes. No parameter is
made, so tables of any size can be compiled for. Devices are real ones or those of a
slice that only its compiler knows (`rankax.parallel.topology`).
"""

from collections.abc import Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from rankax.config.experiment import ExperimentConfig
from rankax.data.schema import Schema
from rankax.observe import collectives
from rankax.observe.collectives import Collective
from rankax.parallel import mesh as meshes
from rankax.training import setup
from rankax.training.step import DeviceBatch, Steps


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a compiled program takes on each device, in bytes.

    Attributes:
        arguments: state and batch.
        outputs: new state, metrics and counts.
        aliased: of the outputs those that are written over arguments.
        temporaries: activations, gradients and what else lives within the step.
        code: the program.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """What a device must have free to run the program."""
        new = self.outputs - self.aliased
        return self.arguments + new + self.temporaries + self.code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompiledStep:
    """A train step and what the compiler says of it.

    Attributes:
        steps: model, engine and mesh.
        compiled: the program; its text is `compiled.as_text()`.
        state_bytes: of the state on one device, without the compiler's padding.
        batch_bytes: of the batch on one device, likewise.
        memory: by the compiler.
        collectives: of the optimized program, by kind and size.
        seconds: that tracing and compiling took.
    """

    steps: Steps
    compiled: jax.stages.Compiled
    state_bytes: int
    batch_bytes: int
    memory: Memory
    collectives: tuple[Collective, ...]
    seconds: float


def compile_train_step(
    config: ExperimentConfig,
    devices: Sequence[Any],
    *,
    schema: Schema | None = None,
    sample_ids: np.ndarray | None = None,
) -> CompiledStep:
    """Compiles the train step of a run for chosen devices; allocates no parameter.

    Args:
        config: the run.
        devices: all of the run's, such as `jax.devices()`.
        schema: fields and tasks; None = what the card of the data set says.
        sample_ids: [n, K] ids of typical examples, which size the exchange as the first
            batch of a run does; None = for ids that never repeat, the most there is.

    Raises:
        ConfigError: options that do not fit each other, the data or the devices.
        DataError: no card, or one without what the run names.
        jax.errors.JaxRuntimeError: what the compiler refuses, in its own words.
    """
    steps = plan_steps(config, devices, schema=schema, sample_ids=sample_ids)
    batch = steps.abstract_batch(config.train.batch_size, sample_ids=sample_ids)
    return compile_steps(steps, batch)


def plan_steps(
    config: ExperimentConfig,
    devices: Sequence[Any],
    *,
    schema: Schema | None = None,
    sample_ids: np.ndarray | None = None,
) -> Steps:
    """Returns the steps that `compile_train_step` compiles; see there."""
    config.validate()
    return Steps(
        config,
        setup.schema_of(config) if schema is None else schema,
        setup.mesh_of(config, devices),
        read_sample=None if sample_ids is None else lambda: sample_ids,
    )


def compile_steps(steps: Steps, batch: DeviceBatch) -> CompiledStep:
    """Compiles the train step for batches of these shapes (`Steps.abstract_batch`).

    Raises:
        jax.errors.JaxRuntimeError: what the compiler refuses, in its own words.
    """
    started = time.monotonic()
    state = steps.abstract_state()
    compiled = steps.lower_train(state, batch).compile()
    found = compiled.memory_analysis()
    assert found is not None  # all of CPU, GPU and TPU have it
    return CompiledStep(
        steps=steps,
        compiled=compiled,
        state_bytes=meshes.bytes_per_device(state),
        batch_bytes=meshes.bytes_per_device(batch),
        memory=Memory(
            arguments=found.argument_size_in_bytes,
            outputs=found.output_size_in_bytes,
            aliased=found.alias_size_in_bytes,
            temporaries=found.temp_size_in_bytes,
            code=found.generated_code_size_in_bytes,
        ),
        collectives=collectives.read(compiled.as_text() or "", steps.mesh.size),
        seconds=time.monotonic() - started,
    )
