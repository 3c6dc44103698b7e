"""The jitted training and evaluation steps.

One `jax.jit` per step with the whole state donated: lookup, forward, backward, dense
optimizer and in-place row update. Learning rates come in as data. A step whose loss or
gradient is not finite writes nothing, neither dense weights nor rows, and neither do
the steps after it: the host finds state and position as they were before it.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import optax

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data.schema import Schema
from rankax.embeddings import counters, optimizers
from rankax.embeddings.counters import Counts
from rankax.embeddings.engine import TableEngine
from rankax.embeddings.placement import TablePlan, plan_tables
from rankax.losses import binary_log_loss
from rankax.models.ranker import Ranker
from rankax.optim.dense import NETWORK, TABLES, dense_optimizer
from rankax.parallel import mesh as meshes
from rankax.parallel import rules
from rankax.training.state import TrainState

DeviceBatch = dict[str, Any]
Metrics = dict[str, jax.Array]  # scalars
_DEVICE_ARRAYS = ("lengths", "numeric", "labels", "weight")


def plan_for(
    config: ExperimentConfig, schema: Schema, *, num_devices: int
) -> TablePlan:
    """Places the tables that the configured backbone asks for."""
    specs = config.model.backbone.tables(schema.num_rows, num_tasks=len(schema.tasks))
    columns = [slot.table for slot in schema.slots for _ in range(slot.width)]
    plan = plan_tables(
        specs,
        column_tables=columns,
        column_fields=[slot.field for slot in schema.slots for _ in range(slot.width)],
        config=config.tables,
        num_devices=num_devices,
        default_rows=schema.default_rows,
    )
    tables = config.tables
    if not plan.groups and (tables.dtype != "float32" or tables.track_last_step):
        raise ConfigError(
            f"tables.dtype = {tables.dtype!r} and tables.track_last_step = "
            f"{tables.track_last_step} act on tables sharded by row, but all tables "
            "are replicated; lower tables.replicate_below_bytes "
            f"({tables.replicate_below_bytes:,}), or leave them as they were"
        )
    if tables.out_of_range == "default_row" and not schema.default_rows:
        raise ConfigError(
            "tables.out_of_range = 'default_row' is for tables of direct ids, but the "
            "fields in use have none; leave it at 'error'"
        )
    if config.optimizer.dense.table_l2 and plan.groups:
        names = [table.spec.name for group in plan.groups for table in group.tables]
        raise ConfigError(
            "optimizer.dense.table_l2 acts on whole replicated tables, but tables "
            f"{names} are sharded by row; raise tables.replicate_below_bytes or set it "
            "to 0"
        )
    return plan


class Steps:
    """Builds the model and holds its compiled steps.

    Attributes:
        schema: fields and tasks.
        mesh: device mesh.
        engine: the tables.
        params: `nnx.State` of the network's weights, as shapes.
        num_dense_parameters: trainable numbers of the network, tables excluded.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        schema: Schema,
        mesh: Mesh,
        *,
        read_sample: Callable[[], np.ndarray] | None = None,
    ):
        """Plans the tables and traces the model; allocates no parameters.

        Args:
            config: the run.
            schema: fields and tasks.
            mesh: device mesh.
            read_sample: returns the ids [n, K] of typical examples, the same on every
                process; called if the exchange between devices has to be sized.

        Raises:
            ConfigError: the configuration does not fit the data set or the devices.
        """
        self.schema = schema
        self.mesh = mesh
        plan = plan_for(config, schema, num_devices=mesh.size)
        sample_ids = None
        if read_sample is not None and mesh.size > 1 and plan.groups:
            sample_ids = read_sample()
        self.engine = TableEngine(
            plan,
            mesh,
            optimizers.from_config(config.optimizer.sparse),
            config=config.tables,
            seed=config.train.seed,
            sample_ids=sample_ids,
        )
        self._config = config
        self._task_weights = _task_weights(config, schema)
        self._optimizer = dense_optimizer(config.optimizer.dense)
        self._seed = config.train.seed
        abstract = nnx.eval_shape(lambda: self._build(jax.random.key(0)))
        self._graph, params, _ = nnx.split(abstract, nnx.Param, ...)
        self.params = params
        self.num_dense_parameters = sum(x.size for x in jax.tree.leaves(params))
        self._network_shardings = rules.shardings(params, mesh)
        self._train = jax.jit(self._train_step, donate_argnums=0)
        self._inspect = jax.jit(self._inspect_step)
        self._evaluate = jax.jit(self._logits)
        self._never_updated = jax.jit(
            lambda tables: self._for_all(self.engine.never_updated(tables))
        )

    # ------------------------------------------------------------ state

    def init_state(self) -> TrainState:
        """Allocates the state, sharded; depends on the seed, not on the devices."""
        key = jax.random.key(self._seed)
        network_key, table_key, stack_key, rng = jax.random.split(key, 4)

        def dense() -> TrainState:
            _, params, rest = nnx.split(self._build(network_key), nnx.Param, ...)
            params = {
                NETWORK: nnx.to_pure_dict(params),
                TABLES: self.engine.init_stacks(stack_key),
            }
            return TrainState(
                step=jnp.int32(0),
                params=params,
                opt_state=self._optimizer.init(params),
                rest=nnx.to_pure_dict(rest),
                tables={},
                rng=jax.random.key_data(rng),
                first_bad_step=jnp.int32(-1),
            )

        shardings = self._shardings(jax.eval_shape(dense))
        state = jax.jit(dense, out_shardings=shardings)()
        tables = self.engine.init_tables(table_key)
        return dataclasses.replace(state, tables=tables)

    def abstract_state(self) -> TrainState:
        """Returns shapes, dtypes and shardings of the state, allocating nothing."""
        state = jax.eval_shape(self.init_state)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            state,
            self._shardings(state),
        )

    def abstract_saved(self) -> TrainState:
        """Returns shapes, dtypes and shardings of a state in a checkpoint."""
        tables = self.engine.abstract_logical()
        return dataclasses.replace(self.abstract_state(), tables=tables)

    def to_saved(self, state: TrainState) -> TrainState:
        """Returns a state as checkpoints have it, see `TableEngine.to_logical`."""
        tables = self.engine.to_logical(state.tables)
        return dataclasses.replace(state, tables=tables)

    def from_saved(self, state: TrainState) -> TrainState:
        """Returns a state of a checkpoint as the devices keep it; consumes it."""
        tables = self.engine.from_logical(state.tables)
        return dataclasses.replace(state, tables=tables)

    def _shardings(self, state: TrainState) -> TrainState:
        """Returns the sharding of every array of a state, given its shapes."""
        replicated = meshes.replicated(self.mesh)
        sharded = meshes.over_all_devices(self.mesh)
        params = {
            NETWORK: self._network_shardings,
            TABLES: jax.tree.map(lambda _: replicated, state.params[TABLES]),
        }
        everything = jax.tree.map(lambda _: replicated, state)
        return dataclasses.replace(
            everything,
            params=params,
            # Moments lie where their weights do.
            opt_state=optax.tree_utils.tree_map_params(
                self._optimizer,
                lambda _, sharding: sharding,
                state.opt_state,
                params,
                transform_non_params=lambda _: replicated,
            ),
            tables=jax.tree.map(lambda _: sharded, state.tables),
        )

    def _build(self, key: jax.Array) -> Ranker:
        dims = self.engine.plan.dims
        return Ranker(self._config.model, self.schema, dims, rngs=nnx.Rngs(key))

    # ------------------------------------------------------------ batches

    def input_shard(self, batch_size: int) -> meshes.InputShard:
        """Returns which piece of every batch of this size `to_devices` expects."""
        return meshes.input_shard(meshes.over_all_devices(self.mesh), batch_size)

    def to_devices(self, arrays: Mapping[str, np.ndarray]) -> DeviceBatch:
        """Routes a packed batch and starts its transfer; called by the reader thread.

        Args:
            arrays: packed arrays of this process's examples (`rankax.data.schema`).
        """
        sharding = meshes.over_all_devices(self.mesh)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, x),
            self._host_batch(arrays),
        )

    def _host_batch(self, arrays: Mapping[str, np.ndarray]) -> DeviceBatch:
        """Returns this process's share of a batch, routed, as NumPy arrays."""
        batch: DeviceBatch = {name: arrays[name] for name in _DEVICE_ARRAYS}
        if "bag_weights" in arrays:
            batch["bag_weights"] = arrays["bag_weights"]
        batch["routes"] = self.engine.route(
            arrays["ids"], is_counted=arrays["weight"] > 0
        )
        return batch

    def abstract_batch(
        self, batch_size: int, *, sample_ids: np.ndarray | None = None
    ) -> DeviceBatch:
        """Returns shapes, dtypes and shardings of what `to_devices` makes.

        They are those of a batch that one process routes here, its first dimension
        stretched over all devices.

        Args:
            batch_size: B, of all devices.
            sample_ids: [n, K] ids of the first batch of a run, n >= B; None = ids that
                repeat as little as the tables allow.
        """
        sharding = meshes.over_all_devices(self.mesh)
        local = meshes.local_device_count(self.mesh)
        share, schema = batch_size // self.mesh.size * local, self.schema
        ids = self._distinct_ids(share) if sample_ids is None else sample_ids[:share]
        arrays = {
            "ids": ids,
            "lengths": np.zeros((share, schema.num_bags), np.int32),
            "numeric": np.zeros((share, schema.num_numeric), np.float32),
            "labels": np.zeros((share, len(schema.tasks)), np.float32),
            "weight": np.ones(share, np.float32),
        }
        if schema.num_bag_weights:
            shape = (share, schema.num_bag_weights)
            arrays["bag_weights"] = np.zeros(shape, np.float32)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (len(x) // local * self.mesh.size, *x.shape[1:]),
                x.dtype,
                sharding=sharding,
            ),
            self._host_batch(arrays),
        )

    def _distinct_ids(self, num_examples: int) -> np.ndarray:
        """Ids [n, K] that run through every table, over all of its columns."""
        names = self.engine.plan.column_tables
        ids = np.empty((num_examples, len(names)), np.int32)
        for name, table in self.schema.tables.items():
            columns = [k for k, own in enumerate(names) if own == name]
            size = (num_examples, len(columns))
            run = np.arange(num_examples * len(columns), dtype=np.int64).reshape(size)
            ids[:, columns] = run % table.num_rows
        return ids

    # ------------------------------------------------------------ steps

    def train(
        self, state: TrainState, batch: DeviceBatch, *, factor: float
    ) -> tuple[TrainState, Metrics, Counts]:
        """Takes one step; the given state is consumed.

        Args:
            state: current state.
            batch: from `to_devices`.
            factor: of both learning rates, from the schedule.

        Returns:
            The new state, scalars to log ("loss": the weighted sum over tasks;
            "added_loss": of auxiliary heads and penalties, where there are any; the
            backbone's own), and what the tables were asked for
            (`rankax.embeddings.counters`).
        """
        return self._train(state, batch, np.float32(factor))

    def lower_train(self, state: TrainState, batch: DeviceBatch) -> jax.stages.Lowered:
        """Returns the step of `train` to compile; takes shapes for arrays."""
        return self._train.lower(state, batch, jax.ShapeDtypeStruct((), jnp.float32))

    def evaluate(
        self, state: TrainState, batch: DeviceBatch
    ) -> tuple[jax.Array, Counts]:
        """Returns logits [B, T] in evaluation mode, and counts as `train` does.

        Every process gets those of the whole batch.
        """
        return self._evaluate(state.params, state.rest, state.tables, batch)

    def scoring(
        self, state: TrainState
    ) -> tuple[Callable[..., jax.Array], dict[str, jax.Array]]:
        """Returns the model without its tables, for export, and its parameters.

        The function computes logits [B, T] of (parameters by name, role -> looked-up
        rows [B, K, D], lengths, numeric, bag_weights) as `rankax.data.schema` has
        them, for any B and on one device. Parameters that no score depends on, as
        those of auxiliary heads, may be left out of what it is given.
        """
        dense = {NETWORK: state.params[NETWORK], "rest": state.rest}
        named, tree = jax.tree.flatten_with_path(dense)
        names = [
            jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named
        ]
        kinds = [(x.shape, x.dtype) for _, x in named]
        has_weights = self.schema.num_bag_weights > 0

        def score(flat, rows, lengths, numeric, bag_weights) -> jax.Array:
            leaves = [
                flat[name] if name in flat else jnp.zeros(*kind)
                for name, kind in zip(names, kinds, strict=True)
            ]
            own = jax.tree.unflatten(tree, leaves)
            model = nnx.merge(self._graph, own[NETWORK], own["rest"], copy=True)
            model.eval()
            return model(
                rows, lengths, numeric, bag_weights=bag_weights if has_weights else None
            )

        return score, dict(zip(names, (x for _, x in named), strict=True))

    def inspect(
        self, state: TrainState, batch: DeviceBatch
    ) -> tuple[dict[str, int], float, np.ndarray]:
        """Looks at the step that `train` would take, and leaves the state as it is.

        Returns:
            How many numbers of "loss", "logits/<task>", "gradient/...",
            "row_gradient/..." and of what they come from ("params/...", "rows/...")
            are not finite, where any are; the loss; and which examples [B] have such a
            logit.
        """
        counts, loss, is_bad = jax.device_get(self._inspect(state, batch))
        named = jax.tree.leaves_with_path(counts)
        found = {
            jax.tree_util.keystr(path, simple=True, separator="/"): int(count)
            for path, count in named
            if count
        }
        return found, float(loss), is_bad

    def never_updated(self, state: TrainState) -> dict[str, int]:
        """Counts rows that no step has touched: "<role>/<table>" -> rows.

        Empty without `tables.track_last_step`.
        """
        counts = jax.device_get(self._never_updated(state.tables))
        return {
            f"{group.role}/{table.spec.name}": int(counts[group.name][index])
            for group in self.engine.plan.groups
            if group.name in counts
            for index, table in enumerate(group.tables)
        }

    def _train_step(
        self, state: TrainState, batch: DeviceBatch, factor: jax.Array
    ) -> tuple[TrainState, Metrics, Counts]:
        requests = self.engine.request(batch["routes"])
        rows = self.engine.lookup(state.tables, requests)
        (loss, (rest, metrics, _)), (gradient, row_gradient) = self._differentiate(
            state, batch, requests, rows
        )
        is_good = _all_finite((loss, gradient, row_gradient))
        is_good &= self.engine.fits(requests)
        enabled = is_good & (state.first_bad_step < 0)
        config = self._config.optimizer
        direction, opt_state = self._optimizer.update(
            gradient, state.opt_state, state.params
        )
        rate = config.dense.learning_rate * factor
        params = optax.apply_updates(
            state.params, jax.tree.map(lambda u: -rate * u, direction)
        )
        tables = self.engine.update(
            state.tables,
            requests,
            rows,
            row_gradient,
            learning_rate=config.sparse.learning_rate * factor,
            step=state.step,
            enabled=enabled,
        )
        kept = (params, opt_state, rest, state.step + 1)
        old = (state.params, state.opt_state, state.rest, state.step)
        params, opt_state, rest, step = jax.tree.map(
            lambda new, old: jnp.where(enabled, new, old), kept, old
        )
        is_first_bad = ~is_good & (state.first_bad_step < 0)
        new_state = TrainState(
            step=step,
            params=params,
            opt_state=opt_state,
            rest=rest,
            tables=tables,
            rng=state.rng,
            first_bad_step=jnp.where(is_first_bad, state.step, state.first_bad_step),
        )
        told = self._for_all((metrics, counters.sum_over_devices(requests)))
        return new_state, *told

    def _differentiate(self, state: TrainState, batch: DeviceBatch, requests, rows):
        """Returns (loss, (rest, metrics, logits)), (gradient, row gradient)."""
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def loss_fn(params, rows):
            model = nnx.merge(self._graph, params[NETWORK], state.rest, copy=True)
            model.train()
            embedded = self.engine.embed(params[TABLES], rows, requests)
            with rules.ambient(self.mesh):
                outputs = model.outputs(
                    embedded, **_inputs(batch), rngs=nnx.Rngs(dropout=key)
                )

            def task_loss(logits: jax.Array) -> jax.Array:
                losses = binary_log_loss(logits, batch["labels"], batch["weight"])
                return jnp.sum(losses * self._task_weights)

            loss = task_loss(outputs.logits)
            metrics = {**outputs.metrics, "loss": loss}
            added = [
                model.auxiliary_weight * task_loss(logits)
                for logits in outputs.auxiliary_logits
            ]
            if outputs.penalty is not None:
                added.append(outputs.penalty)
            if added:
                metrics["added_loss"] = jnp.sum(jnp.stack(added))
                loss += metrics["added_loss"]
            rest = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
            return loss, (rest, metrics, outputs.logits)

        return jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(
            state.params, rows
        )

    def _inspect_step(
        self, state: TrainState, batch: DeviceBatch
    ) -> tuple[dict[str, Any], jax.Array, jax.Array]:
        requests = self.engine.request(batch["routes"])
        rows = self.engine.lookup(state.tables, requests)
        (loss, (_, _, logits)), (gradient, row_gradient) = self._differentiate(
            state, batch, requests, rows
        )
        looked_at = {
            "loss": loss,
            "logits": dict(zip(self.schema.tasks, logits.T, strict=True)),
            "gradient": gradient,
            "row_gradient": row_gradient,
            "params": state.params,
            "rows": rows,
        }
        counts = jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), looked_at)
        return counts, loss, ~jnp.isfinite(logits).all(axis=1)

    def _logits(self, params, rest, tables, batch) -> tuple[jax.Array, Counts]:
        model = nnx.merge(self._graph, params[NETWORK], rest, copy=True)
        model.eval()
        requests = self.engine.request(batch["routes"])
        rows = self.engine.lookup(tables, requests)
        embedded = self.engine.embed(params[TABLES], rows, requests)
        with rules.ambient(self.mesh):
            logits = model(embedded, **_inputs(batch))
        return self._for_all((logits, counters.sum_over_devices(requests)))

    def _for_all(self, tree: Any) -> Any:
        """Makes every process able to read the arrays."""
        everywhere = meshes.replicated(self.mesh)
        return jax.lax.with_sharding_constraint(
            tree, jax.tree.map(lambda _: everywhere, tree)
        )


def _inputs(batch: DeviceBatch) -> dict[str, Any]:
    """What the model reads beside the looked-up rows."""
    return {
        "lengths": batch["lengths"],
        "numeric": batch["numeric"],
        "bag_weights": batch.get("bag_weights"),
    }


def _task_weights(config: ExperimentConfig, schema: Schema) -> np.ndarray:
    weights = config.model.task_weights or (1.0,) * len(schema.tasks)
    if len(weights) != len(schema.tasks):
        raise ConfigError(
            f"model.task_weights has {len(weights)} values for {len(schema.tasks)} "
            f"tasks {schema.tasks}"
        )
    return np.asarray(weights, np.float32)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))
