"""Export: a checkpoint of a run as a bundle that scores without the trainer.

    python -m rankax.main --config=FILE --workdir=RUN --mode=export

The bundle (`rankax.serving.bundle`) is written beside its final place, opened by the
scorer, and compared with the trainer on examples of the validation split: rows of the
tables id by id, and probabilities. It takes its name only if they agree.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
import shutil
from typing import Any
import uuid

from etils import epath
import jax
from jax import export as jax_export
from jax.interpreters import partial_eval
import numpy as np
from numpy.lib import format as npy
import pyarrow as pa

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data import packing, storage
from rankax.data.schema import Schema
from rankax.metrics import auc, binary
from rankax.observe import stores
from rankax.observe.console import Console
from rankax.observe.writers import read_metrics
from rankax.optim.dense import TABLES
from rankax.parallel import processes
from rankax.serving import bundle as bundles
from rankax.serving import features
from rankax.serving.bundle import Role
from rankax.serving.scorer import Scorer
from rankax.training import origin as origins
from rankax.training import run_folder, scoring, served
from rankax.training.checkpoint import save_arrays
from rankax.training.setup import Setup, set_up
from rankax.training.state import TrainState
from rankax.training.step import Steps

FOLDER = "bundle"
PLATFORMS = ("cpu", "cuda", "tpu")
PARITY_EXAMPLES, GOLDEN_EXAMPLES = 10_000, 32

_Dense = Mapping[str, np.ndarray | jax.Array]  # parameters by name
TOLERANCE = 1e-6  # of probabilities, trainer against scorer
# Of golden probabilities on another machine or device, by the model's dtype.
GOLDEN_TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}


class ParityError(ValueError):
    """The bundle does not score as the trainer does; it was not kept."""


def export(
    config: ExperimentConfig,
    workdir: str,
    *,
    step: int | None = None,
    folder: str = "",
    rows: str = "float32",
) -> dict[str, Any]:
    """Writes the bundle of a checkpoint of `workdir`.

    Args:
        config: the run's.
        workdir: its folder.
        step: of the checkpoint; None = the best by validation.
        folder: of the bundle, on a disk; "" = `bundle` in the run folder. A bundle that
            is there is replaced when the new one is whole; anything else is refused.
        rows: dtype of the rows, "float32" or "bfloat16" (half the size; the
            certificate tells what they cost in AUC and log loss).

    Returns:
        `signature.json`.

    Raises:
        ConfigError: no run or no checkpoint there, or of another configuration; a
            bundle that cannot be on a store.
        ParityError: the scorer does not agree with the trainer.
    """
    processes.needs_one("--mode=export")
    if rows not in bundles.DTYPES:
        raise ConfigError(
            f"--rows_dtype={rows} is unknown; choose from {', '.join(bundles.DTYPES)}"
        )
    setup = set_up(config, workdir)
    run = run_folder.find(workdir, config)
    target = bundle_folder(run, folder)
    state, step = scoring.restore(run, setup.steps, step=step)
    with Console() as console:
        return write_bundle(
            config,
            setup,
            state,
            step,
            run=run,
            target=target,
            rows=rows,
            console=console,
        )


def write_bundle(
    config: ExperimentConfig,
    setup: Setup,
    state: TrainState,
    step: int,
    *,
    run: epath.Path,
    target: pathlib.Path,
    rows: str,
    console: Console,
) -> dict[str, Any]:
    """Writes the bundle of a state, if it scores as the trainer does.

    Args:
        config: the run's.
        setup: likewise.
        state: after `step` updates.
        step: their number.
        run: folder of the run, whose metrics of that step go into the signature.
        target: the folder to write; what is there is replaced.
        rows: dtype of the rows.
        console: told what is done.

    Returns:
        `signature.json`.

    Raises:
        ParityError: the scorer does not agree with the trainer.
    """
    with run_folder.explained(str(target)):
        console.message(f"exporting step {step:,} of {run} to {target}")
        draft = target.with_name(f".{target.name}.part")
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        try:
            (draft / "rows").mkdir(parents=True)
            _write_parameters(draft, setup.steps, state, rows, console)
            signature = _signature(config, setup, rows)
            signature |= {"step": step, "metrics": _validated(run, step)}
            signature["parity"] = _certify(
                draft, signature, setup, state, config, rows=rows, console=console
            )
            _sign(draft, signature)
            Scorer(draft, sizes=(GOLDEN_EXAMPLES,))  # as it will be opened
            # Whoever has the old bundle open keeps it.
            storage.replace_folder(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        console.message(f"{target}: {_told(signature['parity'])}")
    return signature


def bundle_folder(run: epath.Path, folder: str) -> pathlib.Path:
    """Returns where the bundle of a run is.

    Args:
        run: its folder.
        folder: what --bundle says; "" = in the run folder.

    Raises:
        ConfigError: that is on a store, or something else than a bundle.
    """
    place = stores.locate(folder) if folder else run / FOLDER
    if not stores.is_on_disk(place):
        raise ConfigError(
            f"a bundle is mapped into memory, which {place} cannot be; name a folder "
            "on a disk by --bundle, and copy it where it is served"
        )
    path = pathlib.Path(place)
    is_free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
    if not is_free and not (path / bundles.SIGNATURE).is_file():
        raise ConfigError(
            f"{path} is no bundle (it has no {bundles.SIGNATURE}), and a bundle would "
            "replace all of it; name a new folder by --bundle, or delete that one"
        )
    return path


# -------------------------------------------------------------------- what is written


def _write_parameters(
    draft: pathlib.Path, steps: Steps, state: TrainState, dtype: str, console: Console
) -> None:
    """Writes rows, dense parameters, the scoring function and the Orbax checkpoint."""
    arrays: dict[str, Any] = {}
    tables = served.tables_of(steps, state)
    track = console.track("write tables", total=len(tables))
    for number, table in enumerate(tables, 1):
        path = draft / bundles.rows_file(table.role, table.name)
        shape = table.num_rows, table.dim
        _write_rows(path, shape, table.read(dtype), dtype)
        arrays[f"rows/{table.role}/{table.name}"] = np.load(
            path, mmap_mode="r", allow_pickle=False
        )
        track.update(number)
    track.close()
    score, dense = steps.scoring(state)
    dense = scored_by(score, dense, steps.schema, steps.engine.plan.dims)
    dense = {name: np.asarray(x) for name, x in dense.items()}
    with (draft / bundles.DENSE).open("wb") as file:
        np.savez(file, **dense)
    function = exported(score, dense, steps.schema, steps.engine.plan.dims)
    (draft / bundles.FUNCTION).write_bytes(function.serialize())
    save_arrays(draft / bundles.ORBAX, dense | arrays)


def _write_rows(
    path: pathlib.Path, shape: tuple[int, int], pieces: Iterator[np.ndarray], dtype: str
) -> None:
    """Writes an .npy file piece by piece."""
    with path.open("wb") as file:
        kind = npy.dtype_to_descr(bundles.DTYPES[dtype])
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, header)
        for piece in pieces:
            piece.tofile(file)


def scored_by(
    score: Callable[..., jax.Array],
    dense: _Dense,
    schema: Schema,
    dims: Mapping[str, int],
) -> dict[str, np.ndarray | jax.Array]:
    """Returns the parameters that scores depend on; the others are for training alone.

    Args:
        score: from `Steps.scoring`.
        dense: its parameters.
        schema: fields and tasks.
        dims: role -> D of the looked-up rows.
    """
    jaxpr = jax.make_jaxpr(score)(*_arguments(dense, schema, dims, 2)).jaxpr
    _, is_used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    names = sorted(dense)  # as jax orders the values of a dict
    return {
        name: dense[name] for name, used in zip(names, is_used, strict=False) if used
    }


def exported(
    score: Callable[..., jax.Array],
    dense: _Dense,
    schema: Schema,
    dims: Mapping[str, int],
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> jax_export.Exported:
    """Traces the scoring function for any number of candidates.

    Args:
        score: from `Steps.scoring`.
        dense: its parameters; shapes and dtypes count.
        schema: fields and tasks.
        dims: role -> D of the looked-up rows.
        platforms: that it is lowered for.
    """
    (b,) = jax_export.symbolic_shape("b")
    arguments = _arguments(dense, schema, dims, b)
    return jax_export.export(jax.jit(score), platforms=platforms)(*arguments)


def _arguments(
    dense: _Dense, schema: Schema, dims: Mapping[str, int], b: Any
) -> tuple[Any, ...]:
    """Shapes of what `Steps.scoring`'s function is given for b candidates."""

    def spec(shape: tuple[Any, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    return (
        {name: spec(x.shape, x.dtype) for name, x in dense.items()},
        {
            role: spec((b, schema.num_id_columns, dim), np.float32)
            for role, dim in dims.items()
        },
        spec((b, schema.num_bags), np.int32),
        spec((b, schema.num_numeric), np.float32),
        spec((b, schema.num_bag_weights), np.float32),
    )


def _signature(config: ExperimentConfig, setup: Setup, rows: str) -> dict[str, Any]:
    """Returns what the bundle says of itself, but for step, metrics and parity."""
    schema, plan = setup.schema, setup.steps.engine.plan
    roles = {role: Role(dim=d, dtype=rows, tables={}) for role, d in plan.dims.items()}
    for part in plan.parts:
        own = {table.spec.name: table.spec.num_rows for table in part.tables}
        roles[part.role].tables.update(own)
    return {
        "format": bundles.FORMAT,
        "id": uuid.uuid4().hex,
        "model": type(config.model.backbone).__name__,
        "inputs": _inputs(schema, setup.splits["train"].text_ids),
        "outputs": {
            task: "probability that the label is 1, float32" for task in schema.tasks
        },
        "card": schema.card_in_use.to_dict(),
        "fields": [field.name for field in schema.fields],
        "tasks": list(schema.tasks),
        "default_row": schema.has_default_row,
        "text_ids": sorted(setup.splits["train"].text_ids),
        "golden_tolerance": GOLDEN_TOLERANCES[config.model.compute_dtype],
        "roles": {name: dataclasses.asdict(role) for name, role in roles.items()},
        "platforms": list(PLATFORMS),
        "origin": origins.of_run(config, setup),
    }


def _inputs(schema: Schema, text_ids: Container[str]) -> dict[str, Any]:
    """Describes every feature for people: name -> type, meaning, default."""
    result: dict[str, Any] = {}
    for slot in schema.slots:
        table = schema.tables[slot.table]
        kind = "text id" if slot.column in text_ids else "integer id"
        kind = "number" if slot.boundaries else kind
        told = f"{slot.name}: row of table {table.name}, {table.num_rows:,} rows"
        if slot.bag >= 0:
            kind = f"list of {kind}s"
            told += f"; the latest {slot.width} of a list count"
        result[slot.column] = {"type": kind, "meaning": told, "default": slot.default}
        if slot.weights:
            result[slot.weights] = {
                "type": "list of numbers",
                "meaning": f"weights of {slot.column}",
                "default": None,
            }
    for field in schema.numeric:
        width = getattr(field, "width", 0)
        result[field.column or field.name] = {
            "type": f"list of {width} numbers" if width else "number",
            "meaning": field.name,
            "default": field.default,
        }
    return result


def _validated(run: epath.Path, step: int) -> dict[str, float]:
    """Returns the validation metrics of a step; {} if it was not validated."""
    for line in read_metrics(run):
        if (line["split"], line["step"]) == ("valid", step):
            return {name: line[name] for name in line if "/" in name}
    return {}


def _sign(draft: pathlib.Path, signature: dict[str, Any]) -> None:
    """Writes the signature, which names the other files, sizes and digests."""
    found = (path for path in draft.rglob("*") if path.is_file())
    files = {path.relative_to(draft).as_posix(): path.stat().st_size for path in found}
    files.pop(bundles.SIGNATURE, None)
    digests = {
        name: bundles.digest((draft / name).read_bytes()) for name in bundles.SMALL
    }
    tree = signature | {"files": dict(sorted(files.items())), "digests": digests}
    run_folder.write_json(stores.locate(draft / bundles.SIGNATURE), tree)


# -------------------------------------------------------------------- parity


def _certify(
    draft: pathlib.Path,
    signature: dict[str, Any],
    setup: Setup,
    state: TrainState,
    config: ExperimentConfig,
    *,
    rows: str,
    console: Console,
) -> dict[str, Any]:
    """Writes the golden candidates, and compares the scorer with the trainer.

    Raises:
        ParityError: they do not agree.
    """
    console.message("comparing the scorer with the trainer")
    raw, arrays, expected = _scored_by_the_trainer(setup, state)
    golden = {name: values[:GOLDEN_EXAMPLES] for name, values in raw.items()}
    path = draft / bundles.GOLDEN
    path.write_text(json.dumps({"features": golden, "logits": []}))
    _sign(draft, signature)
    scorer = Scorer(draft, sizes=(GOLDEN_EXAMPLES, 1024), is_checked=False)
    logits = scorer.logits(golden).tolist()
    path.write_text(json.dumps({"features": golden, "logits": logits}))
    packed = features.pack(setup.schema, raw, {}, text_ids=scorer.bundle.text_ids)
    for slot, ids in zip(setup.schema.slots, packed.ids, strict=True):
        own = arrays["ids"][:, slot.start : slot.start + slot.width]
        if (ids != own).any():
            raise ParityError(
                f"{draft} is not kept: {(ids != own).sum()} ids of {slot.name!r} find "
                "other rows in the scorer than in the trainer; please report this"
            )
    found, names = scorer.logits(raw), setup.schema.tasks
    error = np.abs(binary.probability(found) - binary.probability(expected)).max()
    n = len(expected)
    result = {
        "examples": n,
        "split": "valid",
        "rows": rows,
        "max_probability_difference": float(error),
    }
    stacks = [own["rows"] for own in state.tables.values()]
    stacks += state.params[TABLES].values()
    is_rounded = rows == "bfloat16" and any(x.dtype == np.float32 for x in stacks)
    # Products of bfloat16 depend on how many examples are scored at a time.
    if is_rounded or config.model.compute_dtype != "float32":
        labels, weight = arrays["labels"], arrays["weight"]
        for t, task in enumerate(names):
            before, after = (
                (
                    auc.exact(binary.probability(z[:, t]), labels[:, t], weight),
                    weight @ binary.example_loss(z[:, t], labels[:, t]) / weight.sum(),
                )
                for z in (expected, found)
            )
            result[f"{task}/auc_difference"] = float(after[0] - before[0])
            result[f"{task}/log_loss_difference"] = float(after[1] - before[1])
    elif not error <= TOLERANCE:
        raise ParityError(
            f"{draft} is not kept: on {n:,} examples of the validation split its "
            f"probabilities differ from the trainer's by up to {error:.2g}, at most "
            f"{TOLERANCE:.0e} is allowed; please report this"
        )
    return result


def _scored_by_the_trainer(
    setup: Setup, state: TrainState
) -> tuple[dict[str, list[Any]], dict[str, np.ndarray], np.ndarray]:
    """Returns features, packed arrays and logits [n, T] of validation examples."""
    source, steps = setup.splits["valid"], setup.steps
    groups, n = [], 0
    for group in range(len(source.rows_per_group)):
        groups.append(source.read(group))
        n += groups[-1].num_rows
        if n >= PARITY_EXAMPLES:
            break
    devices = steps.mesh.size
    size = min(n, 1000) // devices * devices
    if not size:
        raise ConfigError(
            f"{source.name} has {n} examples, too few to compare with on {devices} "
            "devices; export on one device"
        )
    n = min(n, PARITY_EXAMPLES) // size * size
    table = pa.concat_tables(groups).slice(0, n).combine_chunks()
    arrays = packing.pack(table, setup.schema, where=source.name)
    logits = [
        steps.evaluate(
            state,
            steps.to_devices({k: x[i : i + size] for k, x in arrays.items()}),
        )[0]
        for i in range(0, n, size)
    ]
    raw = {name: table[name].to_pylist() for name in features.names(setup.schema)}
    return raw, arrays, np.concatenate(jax.device_get(logits))


def _told(parity: dict[str, Any]) -> str:
    differences = [
        f"{name.replace('_', ' ')} {value:+.2g}"
        for name, value in parity.items()
        if name.endswith("_difference") and "/" in name
    ]
    text = (
        f"on {parity['examples']:,} examples its probabilities are the trainer's "
        f"within {parity['max_probability_difference']:.1g}"
    )
    return ", ".join([text, *differences])
