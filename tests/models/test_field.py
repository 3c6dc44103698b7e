"""xDeepFM, AutoInt, FinalMLP, Wukong and the low-rank DCN-v2: equations and counts."""

from flax import nnx
import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.layers.bilinear_fusion import BilinearFusion
from rankax.layers.compressed_interaction import CompressedInteraction
from rankax.layers.cross import LowRankCrossNet
from rankax.layers.feature_gate import FeatureGate
from rankax.layers.field_attention import FieldAttention
from rankax.layers.mlp import MLP
from rankax.models.backbones.autoint import AutoInt, AutoIntConfig
from rankax.models.backbones.dcnv2 import DCNv2, DCNv2Config
from rankax.models.backbones.finalmlp import FinalMLP, FinalMLPConfig
from rankax.models.backbones.wukong import WukongConfig, WukongLayer
from rankax.models.backbones.xdeepfm import XDeepFM, XDeepFMConfig
from rankax.models.base import Features, InputSpec, build_backbone

RNG = np.random.default_rng(0)
BATCH = 3


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def values(param):
    return np.asarray(param[...], np.float64)


def close(got, want):
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-4, atol=1e-5)


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, norm):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return x * values(norm.scale) + values(norm.bias)


def affine(layer, x):
    return x @ values(layer.kernel) + values(layer.bias)


def perceptron(mlp, x):
    for layer in mlp.linears:
        x = relu(affine(layer, x))
    return x


def make_inputs(*, num_fields=3, num_numeric=0, num_tasks=1, **dims):
    dims = dims or {"embedding": 4}
    tokens = tuple(f"f{i}" for i in range(num_fields))
    return InputSpec(
        tokens=tokens,
        dims=dims,
        numeric=tuple(f"x{i}" for i in range(num_numeric)),
        num_tasks=num_tasks,
    )


def make_features(inputs):
    """Random rows, as NumPy arrays."""
    embedded = {
        role: normal(BATCH, inputs.num_fields, dim) for role, dim in inputs.dims.items()
    }
    return Features(embedded=embedded, numeric=normal(BATCH, inputs.num_numeric))


def build(make):
    """The module with random parameters, biases too; no initialiser is compiled."""
    graph, state = nnx.split(nnx.eval_shape(make))
    fill = jax.tree.map(lambda x: jnp.asarray(0.7 * normal(*x.shape)), state)
    return nnx.merge(graph, fill)


def apply(module, *arguments):
    graph, state = nnx.split(module)
    forward = jax.jit(lambda state, *arguments: nnx.merge(graph, state)(*arguments))
    return forward(state, *jax.tree.map(jnp.asarray, arguments))


# ---------------------------------------------------------------- layers


def cin_by_loops(cin, tokens):
    sums = []
    for example in tokens:
        maps, own = example, []
        for kernel, bias in zip(cin.kernels, cin.biases, strict=True):
            w, new = values(kernel), []
            for h in range(w.shape[-1]):
                x = np.full(example.shape[-1], values(bias)[h])
                for i in range(len(example)):
                    for j in range(len(maps)):
                        x += w[i, j, h] * example[i] * maps[j]
                new.append(x)
                own.append(x.sum())
            maps = new
        sums.append(own)
    return np.array(sums)


def test_cin_is_the_sum_over_pairs_of_fields_and_maps():
    cin = build(lambda: CompressedInteraction(3, (4, 2), rngs=nnx.Rngs(0)))
    tokens = normal(BATCH, 3, 5)
    close(apply(cin, tokens), cin_by_loops(cin, tokens))


def test_cin_never_holds_the_products_of_all_pairs():
    batch, num_fields, dim, num_maps = 64, 7, 3, 11
    cin = build(
        lambda: CompressedInteraction(num_fields, (num_maps,) * 2, rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(cin)
    gradient = jax.grad(lambda state, x: nnx.merge(graph, state)(x).sum(), (0, 1))
    jaxpr = jax.make_jaxpr(gradient)(state, jnp.ones((batch, num_fields, dim)))
    largest = max(x.size for x in intermediates(jaxpr.jaxpr))
    assert batch * num_maps * dim <= largest < batch * num_fields * num_maps * dim


def intermediates(jaxpr):
    """All values of a program, those inside its loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from intermediates(inner)


def attention_by_loops(layer, x, *, scale=1.0):
    out = []
    for example in x:
        q, k, v = (
            example @ values(projection.kernel)
            for projection in (layer.query, layer.key, layer.value)
        )
        dim = q.shape[-1] // layer.num_heads
        mixed = np.zeros_like(q)
        for i in range(len(example)):
            for h in range(layer.num_heads):
                head = slice(h * dim, (h + 1) * dim)
                scores = np.array([q[i, head] @ key[head] for key in k])
                mixed[i, head] = softmax(scores * scale) @ v[:, head]
        if layer.use_residual:
            mixed += (
                example @ values(layer.residual.kernel) if layer.residual else example
            )
        if layer.norm:
            mixed = np.array([layer_norm(token, layer.norm) for token in mixed])
        out.append(relu(mixed))
    return np.array(out)


@pytest.mark.parametrize(
    ("width_in", "scale", "options"),
    [
        (6, 1.0, {}),
        (4, 3**-0.5, {"use_scale": True, "use_layer_norm": True}),
        (4, 1.0, {"use_residual": False}),
    ],
)
def test_attention_equals_the_equation_head_by_head(width_in, scale, options):
    layer = build(
        lambda: FieldAttention(width_in, 6, num_heads=2, rngs=nnx.Rngs(0), **options)
    )
    assert (layer.residual is None) == (width_in == 6 or not layer.use_residual)
    x = normal(BATCH, 5, width_in)
    close(apply(layer, x), attention_by_loops(layer, x, scale=scale))


def cross_by_loops(net, x0):
    x = x0.astype(np.float64)
    for layer in net.layers:
        gates = softmax(x @ values(net.gate.kernel)) if net.gate else [1.0]
        mixed = np.zeros_like(x)
        for e, gate in enumerate(gates):
            v, c, u = (values(w)[e] for w in (layer.down, layer.middle, layer.up))
            expert = np.tanh(np.tanh(x @ v) @ c) @ u
            mixed += gate * x0 * (expert + values(layer.bias))
        x = x + mixed
    return x


@pytest.mark.parametrize("num_experts", [1, 3])
def test_low_rank_cross_net_equals_the_mixture_of_its_experts(num_experts):
    options = {"low_rank": 2, "num_experts": num_experts}
    net = build(lambda: LowRankCrossNet(5, 2, rngs=nnx.Rngs(0), **options))
    x = normal(BATCH, 5)
    close(apply(net, x), np.array([cross_by_loops(net, row) for row in x]))


def test_experts_start_as_matrices_of_their_own():
    net = LowRankCrossNet(200, 1, low_rank=8, num_experts=4, rngs=nnx.Rngs(0))
    (layer,) = net.layers
    for kernel in (layer.down, layer.up):
        assert values(kernel).std() == pytest.approx((2 / 208) ** 0.5, rel=0.03)


def gate_of(gate, context):
    return 2 * sigmoid(affine(gate.output, perceptron(gate.hidden, context)))


def test_feature_gate_scales_each_number_by_twice_a_probability():
    gate = build(lambda: FeatureGate(3, 5, (4,), rngs=nnx.Rngs(0)))
    x, context = normal(BATCH, 5), normal(BATCH, 3)
    close(apply(gate, x, context), x * gate_of(gate, context))


def fusion_by_loops(fusion, o1, o2):
    out = affine(fusion.linear1, o1) + affine(fusion.linear2, o2)
    kernel = values(fusion.kernel)
    num_heads, dim1, dim2, num_tasks = kernel.shape
    for b in range(len(out)):
        for t in range(num_tasks):
            for h in range(num_heads):
                first = o1[b, h * dim1 : (h + 1) * dim1]
                second = o2[b, h * dim2 : (h + 1) * dim2]
                out[b, t] += first @ kernel[h, :, :, t] @ second
    return out


def test_bilinear_fusion_equals_the_products_of_each_head():
    fusion = build(
        lambda: BilinearFusion(6, 4, num_heads=2, num_tasks=3, rngs=nnx.Rngs(0))
    )
    o1, o2 = normal(BATCH, 6), normal(BATCH, 4)
    close(apply(fusion, o1, o2), fusion_by_loops(fusion, o1, o2))


@pytest.mark.parametrize("num_tokens", [4, 5])
def test_wukong_layer_equals_the_equations(num_tokens):
    config = WukongConfig(
        num_fmb_tokens=3, num_lcb_tokens=2, rank=2, fmb_hidden_dims=(6,)
    )
    inputs = make_inputs()
    layer = build(lambda: WukongLayer(config, num_tokens, inputs, rngs=nnx.Rngs(0)))
    assert (layer.residual is None) == (num_tokens == 5)
    x = normal(BATCH, num_tokens, 4)
    want = np.zeros((BATCH, 5, 4))
    for b in range(BATCH):
        pairs = x[b] @ x[b].T  # what Y compresses: ⟨x_i, x_j⟩ of all pairs
        products = (pairs @ values(layer.rank_weights)).ravel()
        products = layer_norm(products, layer.product_norm)
        want[b, :3] = perceptron(layer.mlp, products).reshape(3, 4)
        want[b, 3:] = values(layer.compression).T @ x[b]
        want[b] += values(layer.residual).T @ x[b] if layer.residual else x[b]
        want[b] = [layer_norm(token, layer.norm) for token in want[b]]
    close(apply(layer, x), want)


# ---------------------------------------------------------------- models


def test_xdeepfm_adds_its_three_parts():
    inputs = make_inputs(num_numeric=2, num_tasks=2, embedding=4, weight=2)
    config = XDeepFMConfig(embedding_dim=4, cin_dims=(5,), hidden_dims=(6,))
    model = build(lambda: XDeepFM(config, inputs, rngs=nnx.Rngs(0)))
    features = make_features(inputs)
    x = features.numeric
    numeric = x[..., None] * values(model.numeric_factors)
    tokens = np.concatenate([features.embedded["embedding"], numeric], axis=1)
    want = features.embedded["weight"].sum(axis=1)
    want = want + x @ values(model.first_order.numeric)
    want += affine(model.cin_output, cin_by_loops(model.cin, tokens))
    hidden = perceptron(model.mlp, tokens.reshape(BATCH, -1))
    close(apply(model, features), want + affine(model.mlp_output, hidden))


def test_autoint_plus_and_wide_add_to_the_attention():
    inputs = make_inputs(num_numeric=1, num_tasks=2, embedding=4, weight=2)
    config = AutoIntConfig(
        attention_dim=4, num_layers=2, use_wide=True, hidden_dims=(6,)
    )
    model = build(lambda: AutoInt(config, inputs, rngs=nnx.Rngs(0)))
    features = make_features(inputs)
    x = features.numeric
    own = model.numeric_tokens
    numeric = x[..., None] * values(own.direction) + values(own.offset)
    tokens = np.concatenate([features.embedded["embedding"], numeric], axis=1)
    attended = tokens
    for layer in model.layers:
        attended = attention_by_loops(layer, attended)
    want = affine(model.output, attended.reshape(BATCH, -1))
    hidden = perceptron(model.mlp, tokens.reshape(BATCH, -1))
    want += affine(model.mlp_output, hidden)
    want += features.embedded["weight"].sum(axis=1)
    close(apply(model, features), want + x @ values(model.first_order.numeric))
    assert [spec.dim for spec in config.tables({"a": 5}, num_tasks=2)] == [16, 2]
    assert len(AutoIntConfig().tables({"a": 5}, num_tasks=2)) == 1


def test_finalmlp_gates_take_their_context_from_tables_of_their_own():
    config = FinalMLPConfig(
        embedding_dim=4,
        gate1_fields=("f2", "f0"),
        gate2_fields=("f1",),
        hidden_dims=(8,),
        hidden_dims2=(4,),
    )
    specs = config.tables({"f0": 10, "f1": 20, "f2": 30}, num_tasks=2)
    assert [(s.role, s.name, s.num_rows, s.dim, s.fields) for s in specs[3:]] == [
        ("gate1", "f2", 30, 4, ("f2",)),
        ("gate1", "f0", 10, 4, ("f0",)),
        ("gate2", "f1", 20, 4, ("f1",)),
    ]
    inputs = make_inputs(num_numeric=1, num_tasks=2, embedding=4, gate1=4, gate2=4)
    model = build(lambda: FinalMLP(config, inputs, rngs=nnx.Rngs(0)))
    features = make_features(inputs)
    x = features.embedded["embedding"].reshape(BATCH, -1)
    x = np.concatenate([x, features.numeric], axis=1)
    context1 = features.embedded["gate1"][:, [2, 0]].reshape(BATCH, -1)
    context2 = features.embedded["gate2"][:, 1]
    gate1, gate2 = (gate.gate for gate in model.gates)
    o1 = perceptron(model.mlp1, x * gate_of(gate1, context1))
    o2 = perceptron(model.mlp2, x * gate_of(gate2, context2))
    close(apply(model, features), fusion_by_loops(model.fusion, o1, o2))


@pytest.mark.parametrize("use_feature_selection", [True, False])
def test_finalmlp_without_context_learns_one_gate_for_all(use_feature_selection):
    inputs = make_inputs()
    config = FinalMLPConfig(
        use_feature_selection=use_feature_selection,
        hidden_dims=(8,),
        hidden_dims2=(4,),
    )
    model = build(lambda: FinalMLP(config, inputs, rngs=nnx.Rngs(0)))
    features = make_features(inputs)
    x1 = x2 = features.embedded["embedding"].reshape(BATCH, -1)
    if use_feature_selection:
        scale1, scale2 = (gate_of(g.gate, values(g.vector)) for g in model.gates)
        x1, x2 = x1 * scale1, x2 * scale2
    o1, o2 = perceptron(model.mlp1, x1), perceptron(model.mlp2, x2)
    close(apply(model, features), fusion_by_loops(model.fusion, o1, o2))


def test_dcnv2_stacked_feeds_the_crosses_to_the_mlp():
    inputs = make_inputs(num_numeric=1)
    config = DCNv2Config(
        structure="stacked", low_rank=2, num_experts=2, hidden_dims=(6,)
    )
    model = build(lambda: DCNv2(config, inputs, rngs=nnx.Rngs(0)))
    features = make_features(inputs)
    x = features.embedded["embedding"].reshape(BATCH, -1)
    x = np.concatenate([x, features.numeric], axis=1)
    crossed = np.array([cross_by_loops(model.cross, row) for row in x])
    close(apply(model, features), perceptron(model.mlp, crossed))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AutoIntConfig(num_heads=3), "attention_dim = 64 cannot be split into 3 heads"),
        (DCNv2Config(num_experts=4), "num_experts = 4 .* low_rank is 0; set low_rank"),
        (
            DCNv2Config(structure="stacked", hidden_dims=()),
            "structure = 'stacked' .* hidden_dims is empty; .* leave it at 'parallel'",
        ),
        (
            DCNv2Config(structure="paralel"),
            "structure .* unknown; did you mean 'parallel'",
        ),
        (FinalMLPConfig(num_heads=5), r"hidden_dims = .* multiple of .* = 5"),
        (FinalMLPConfig(hidden_dims2=()), r"hidden_dims2 = \(\) must not be empty"),
        (
            FinalMLPConfig(gate1_fields=("user",), use_feature_selection=False),
            r"gate1_fields = \('user',\) is of the gates, but there are none",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ConfigError, match=rf"model\.backbone\.{message}"):
        build_backbone(config, make_inputs(), rngs=nnx.Rngs(0))


def test_a_context_field_without_a_table_of_its_own_is_refused():
    config = FinalMLPConfig(gate2_fields=("usr",))
    with pytest.raises(ConfigError, match=r"gate2_fields .* did you mean 'user'"):
        config.tables({"user": 5, "item": 5}, num_tasks=1)


def test_a_context_field_that_the_run_does_not_read_is_refused():
    config = FinalMLPConfig(gate1_fields=("g0",))
    with pytest.raises(ConfigError, match="'g0', which is no field of the run"):
        FinalMLP(config, make_inputs(), rngs=nnx.Rngs(0))


# ---------------------------------------------------------------- published counts
#
# FuxiCTR 1 counts the rows of ids and their padding, FuxiCTR 2 (which ran FinalMLP) one
# more per field, for ids it has not seen; on Criteo_x4 both runs were of one version.
FRAPPE = {"user": 955, "item": 4083, "other": 351}  # 5,389
FRAPPE_2 = {"user": 956, "item": 4084, "other": 359}
MOVIELENS, MOVIELENS_2 = {"all": 90_239}, {"all": 90_242}
CRITEO = {"all": 910_747}
AVAZU, AVAZU_2 = {"all": 3_750_975}, {"all": 3_750_999}

DEEP = {"hidden_dims": (400,) * 3}
NORMED = {**DEEP, "use_batch_norm": True}
ATTENTION = {"attention_dim": 128, "num_heads": 4}
ATTENTION_ML = {**ATTENTION, "num_layers": 2, "use_layer_norm": True, "use_wide": True}


def count(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def dense_parameters(config, inputs):
    """Those of backbone and head; nothing is allocated."""
    model = nnx.eval_shape(lambda: build_backbone(config, inputs, rngs=nnx.Rngs(0)))
    if getattr(model, "returns_logits", False):
        return count(model)
    width = model.mlp.width
    if isinstance(model, DCNv2):
        width += inputs.flat_dim()
    return count(model) + width + 1


@pytest.mark.parametrize(
    ("rows", "num_fields", "config", "published"),
    [
        (FRAPPE, 10, XDeepFMConfig(cin_dims=(64,), **NORMED), 429_809),
        (FRAPPE, 10, XDeepFMConfig(cin_dims=(64,) * 3, hidden_dims=()), 147_984),
        (FRAPPE, 10, AutoIntConfig(num_layers=6, **ATTENTION), 306_051),
        (
            FRAPPE,
            10,
            AutoIntConfig(num_layers=5, use_layer_norm=True, **ATTENTION, **NORMED),
            622_180,
        ),
        (
            FRAPPE_2,
            10,
            FinalMLPConfig(
                gate1_fields=("user",),
                gate2_fields=("item",),
                gate_hidden_dims=(400,),
                hidden_dims=(400,),
                hidden_dims2=(100,),
                use_batch_norm=True,
                use_batch_norm2=True,
                num_heads=5,
            ),
            253_392,
        ),
        (MOVIELENS, 3, DCNv2Config(num_cross_layers=5, **NORMED), 1_243_071),
        (MOVIELENS, 3, XDeepFMConfig(cin_dims=(64,) * 3, **DEEP), 1_351_767),
        (MOVIELENS, 3, AutoIntConfig(**ATTENTION_ML), 1_047_798),
        (MOVIELENS, 3, AutoIntConfig(**ATTENTION_ML, **NORMED), 1_383_799),
        (
            MOVIELENS_2,
            3,
            FinalMLPConfig(
                gate_hidden_dims=(800,),
                hidden_dims=(400,),
                hidden_dims2=(800,),
                use_batch_norm=True,
                use_batch_norm2=True,
                num_heads=10,
            ),
            1_040_902,
        ),
        (
            CRITEO,
            39,
            DCNv2Config(hidden_dims=(1000,) * 5, use_batch_norm=True),
            20_382_577,
        ),
        (
            CRITEO,
            39,
            FinalMLPConfig(
                use_feature_selection=False,
                hidden_dims=(1000,) * 5,
                hidden_dims2=(500,),
                num_heads=50,
            ),
            19_524_954,
        ),
        (
            AVAZU,
            24,
            DCNv2Config(num_cross_layers=4, hidden_dims=(2000,) * 4),
            73_385_345,
        ),
        (
            AVAZU_2,
            24,
            FinalMLPConfig(
                use_feature_selection=False,
                hidden_dims=(2000,) * 3,
                hidden_dims2=(500,),
                use_batch_norm=True,
                num_heads=20,
            ),
            69_046_986,
        ),
    ],
)
def test_parameters_are_those_of_the_leaderboard(rows, num_fields, config, published):
    config.embedding_dim = 16 if num_fields > 20 else 10
    specs = config.tables(rows, num_tasks=1)
    dims = {spec.role: spec.dim for spec in specs}
    fields = [*rows, *range(num_fields - len(rows))]
    inputs = InputSpec(tokens=tuple(map(str, fields)), dims=dims, num_tasks=1)
    tables = sum(spec.num_rows * spec.dim for spec in specs)
    assert dense_parameters(config, inputs) + tables == published


def test_criteo_parameters_are_those_of_the_mlcc_repository():
    inputs = make_inputs(num_fields=39, embedding=16)
    top = (256, 128, 64, 32)
    wukong = WukongConfig(rank=32, fmb_hidden_dims=(), hidden_dims=top)
    assert dense_parameters(wukong, inputs) == 766_001
    # Its DCN-v2 has one more MLP on top of both towers; ours ends in the head there.
    width = 39 * 16
    towers = DCNv2Config(num_cross_layers=2, hidden_dims=(128, 64))
    both = dense_parameters(towers, inputs) - (width + 64 + 1)
    mlp = nnx.eval_shape(lambda: MLP(width + 64, top, rngs=nnx.Rngs(0)))
    assert both + count(mlp) + 32 + 1 == 1_087_905


def test_a_low_rank_layer_has_the_counted_parameters():
    n, r, k = 100, 32, 4
    net = nnx.eval_shape(
        lambda: LowRankCrossNet(n, 2, low_rank=r, num_experts=k, rngs=nnx.Rngs(0))
    )
    assert count(net) == 2 * (k * (2 * n * r + r * r) + n) + n * k
