"""Every model as it is served: exported for any number of candidates."""

import functools
import re

from flax import nnx
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import made_up, make_inputs, make_schema

from rankax import export
from rankax.config.experiment import ExperimentConfig, MeanPoolingConfig
from rankax.metrics import binary
from rankax.models import base, sequences
from rankax.models.ranker import Ranker
from rankax.parallel import mesh as meshes
from rankax.training.state import TrainState
from rankax.training.step import NETWORK, Steps

MOST = 32
# Half the time to compile; what is compared is the same.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
EXPERTS = {"num_experts": 4, "num_active_experts": 3, "token_dim": 8, "num_blocks": 1}
# Backbone, its options, sequence encoder.
CASES = {name: (name, {}, MeanPoolingConfig) for name in sorted(base.registered())}
CASES |= {
    encoder.__name__: ("dnn", {"use_batch_norm": True}, encoder)
    for encoder in sequences._ENCODERS
    if encoder is not MeanPoolingConfig
}
CASES |= {
    execution: (
        "tokenmixer_large",
        {"execution": execution} | EXPERTS,
        MeanPoolingConfig,
    )
    for execution in ("auto", "ragged")
}
CASES["auxiliary"] = (
    "tokenmixer_large",
    {
        "num_blocks": 3,
        "residual_interval": 1,
        "auxiliary_weight": 0.1,
        "token_dim": 8,
    },
    MeanPoolingConfig,
)
each_model = pytest.mark.parametrize(
    "case",  # "ragged" is traced for "auto" too, and no CPU would choose it
    [c if c != "ragged" else pytest.param(c, marks=pytest.mark.slow) for c in CASES],
)


@functools.cache
def make(case):
    """Steps, a state, MOST candidates, and what the model itself makes of them.

    The candidates are the arguments of the scoring function after the parameters.
    """
    name, options, encoder = CASES[case]
    config, schema = ExperimentConfig(), make_schema()
    config.model.backbone = base.named_config(name, **options)
    config.model.sequence = encoder()
    steps = Steps(config, schema, meshes.make_mesh(devices=jax.devices()[:1]))
    rng = np.random.default_rng(1)
    dims = steps.engine.plan.dims
    ranker = nnx.eval_shape(
        lambda: Ranker(config.model, schema, dims, rngs=nnx.Rngs(0))
    )
    ranker.eval()
    graph, params, rest = jax.tree.map_with_path(
        functools.partial(made_up, rng), nnx.split(ranker, nnx.Param, ...)
    )
    state = TrainState(
        params={NETWORK: nnx.to_pure_dict(params)},
        rest=nnx.to_pure_dict(rest),
        **dict.fromkeys(("step", "opt_state", "tables", "rng", "first_bad_step")),
    )
    rows, *others = make_inputs(rng, schema, dims, MOST)
    # Large logits would hide a difference, as all probabilities are then 0 or 1.
    inputs = ({role: 0.3 * x for role, x in rows.items()}, *others)
    model = jax.jit(
        lambda params, rest, *inputs: nnx.merge(graph, params, rest)(*inputs),
        compiler_options=FAST,
    )
    no_weights = jnp.zeros((MOST, schema.num_bag_weights))
    return steps, state, (*inputs, no_weights), model(params, rest, *inputs)


def exported(case, **options):
    steps, state, *_ = make(case)
    score, dense = steps.scoring(state)
    dims = steps.engine.plan.dims
    dense = export.scored_by(score, dense, steps.schema, dims)
    return export.exported(score, dense, steps.schema, dims, **options), dense


@functools.cache
def served(case):
    """The exported model, read back as a server does."""
    function, dense = exported(case, platforms=("cpu",))
    function = jax_export.deserialize(function.serialize())
    return functools.partial(jax.jit(function.call, compiler_options=FAST), dense)


@each_model
@pytest.mark.parametrize("n", [1, pytest.param(7, marks=pytest.mark.slow), MOST])
def test_an_exported_model_gives_each_candidate_the_probability_of_the_model(case, n):
    _, _, inputs, logits = make(case)
    got = served(case)(*jax.tree.map(lambda x: x[:n], inputs))
    assert got.shape == (n, 2) and np.std(logits) > 0
    got, want = binary.probability(np.asarray(got)), binary.probability(logits[:n])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@each_model
def test_candidates_are_scored_alike_whatever_a_request_is_filled_up_with(case):
    _, _, inputs, _ = make(case)
    n = 7
    alone = jax.tree.map(lambda x: x.at[n:].set(0), inputs)
    found = [np.asarray(served(case)(*x))[:n] for x in (inputs, alone)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("case", ["auxiliary", "dcnv2"])
def test_what_serves_training_alone_is_not_exported(case):
    steps, state, *_ = make(case)
    _, everything = steps.scoring(state)
    _, dense = exported(case, platforms=("cpu",))
    left_out = everything.keys() - dense.keys()
    modules = {re.sub(r"/\d+/.*", "", name) for name in left_out}
    expected = {"network/auxiliary_heads", "network/backbone/lower_norms"}
    assert modules == (expected if case == "auxiliary" else set())


@pytest.mark.slow
@each_model
def test_every_model_is_exported_for_all_platforms(case):
    function, _ = exported(case)
    assert function.platforms == export.PLATFORMS == ("cpu", "cuda", "tpu")
    assert [str(x.shape) for x in function.out_avals] == ["(b, 2)"]
