"""What `test_two_processes.py` computes in one process, and one of two processes.

python two_processes.py --address=HOST:PORT --index=0 --out=FILE.npz
"""

import argparse

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
from test_engine import (
    COLUMNS,
    OPTIMIZERS,
    make_engine,
    make_ids,
    make_targets,
    skewed_ids,
)

from rankax.embeddings import counters
from rankax.parallel import mesh as meshes

NUM_PROCESSES = 2
NUM_DEVICES = 8  # of all processes
NUM_STEPS = 4

CASES = {
    "rowwise_adagrad": {"dtype": "bfloat16", "deduplicate": "host"},
    "lazy_adam": {"dtype": "float32", "deduplicate": "device"},
}


def train(optimizer, options):
    """Takes some steps; even ones overflow their exchange, odd ones do not."""
    all_repeat = np.zeros((8, len(COLUMNS)), np.int32)
    engine = make_engine(
        sparse=OPTIMIZERS[optimizer], small=0, sample_ids=all_repeat, **options
    )
    sharding = meshes.over_all_devices(engine.mesh)
    crowded = skewed_ids(engine)

    @jax.jit
    def step(tables, routes, targets, number):
        requests = engine.request(routes)

        def loss(rows):
            embedded = engine.embed({}, rows, requests)
            return sum(jnp.sum(targets[r] * x**2) for r, x in embedded.items())

        rows = engine.lookup(tables, requests)
        new = engine.update(
            tables,
            requests,
            rows,
            jax.grad(loss)(rows),
            learning_rate=jnp.float32(OPTIMIZERS[optimizer].learning_rate),
            step=number,
            enabled=engine.fits(requests),
        )
        embedded = engine.embed({}, rows, requests)
        counts = counters.sum_over_devices(requests)
        return new, {"embedded": embedded, "counts": counts}

    def own(x):
        """This process's part of a batch."""
        shard = meshes.input_shard(sharding, len(x))
        return np.split(x, shard.count)[shard.index]

    def place(tree):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, x), tree
        )

    tables = engine.init_tables(jax.random.key(1))
    steps = []
    for number in range(NUM_STEPS):
        ids = np.tile(make_ids(number)[:1], (64, 1)) if number % 2 else crowded(number)
        routes = place(engine.route(own(ids)))
        targets = place(jax.tree.map(own, make_targets(engine, number)))
        tables, outputs = step(tables, routes, targets, np.int32(number))
        steps.append(outputs)
    result = {"tables": tables, "steps": steps}
    return multihost_utils.process_allgather(result, tiled=True)


def train_all():
    """Returns path -> array, for all cases."""
    results = {name: train(name, options) for name, options in CASES.items()}
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(results)
    }


def main():
    parser = argparse.ArgumentParser()
    for name, kind in (("address", str), ("index", int), ("out", str)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES // NUM_PROCESSES)
    jax.distributed.initialize(args.address, NUM_PROCESSES, args.index)
    np.savez(args.out, **train_all())


if __name__ == "__main__":
    main()
