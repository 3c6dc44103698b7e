"""Deltas: what is published is what a full export would be, in order and at once."""

import json
import shutil
import threading

from every_kind import make_config
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.export import export
from rankax.publish import publish
from rankax.serving import DeltaError, Scorer
from rankax.serving import delta as deltas
from rankax.serving.bundle import Bundle
from rankax.serving.delta import Change, Delta, Header
from rankax.serving.versions import Versions
from rankax.train import train
from rankax.training import run_folder
from rankax.training.publisher import Publisher

STEPS = (3, 6, 9, 10)


def saving(config):
    config.checkpoint.every_steps, config.checkpoint.keep_last = 3, 10
    return config


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(True, id="last_step"),
        pytest.param(False, id="compared", marks=pytest.mark.slow),
    ],
)
def saved_run(request, every_kind, tmp_path_factory):
    """(config, run folder) with checkpoints after `STEPS`."""
    config = saving(make_config(every_kind, "dnn", embedding_dim=4, hidden_dims=(8,)))
    config.tables.track_last_step = request.param
    folder = tmp_path_factory.mktemp("saved") / "run"
    train(config, str(folder))
    return config, folder


@pytest.fixture
def published(saved_run, tmp_path):
    """(config, run folder, bundle of step 3)."""
    config, run = saved_run
    bundle = tmp_path / "bundle"
    export(config, str(run), step=3, folder=str(bundle))
    return config, run, bundle


def exported(config, run, step, folder, rows="float32"):
    """Rows by (role, table), and dense parameters, of a full export."""
    export(config, str(run), step=step, folder=str(folder), rows=rows)
    bundle = Bundle(folder)
    return flat(bundle.map_rows()), bundle.dense


def flat(rows):
    return {
        (role, table): values
        for role, tables in rows.items()
        for table, values in tables.items()
    }


def assert_same(versions, rows, dense):
    with versions.reading() as version:
        found = flat(version.rows)
        assert found.keys() == rows.keys()
        for name, values in rows.items():
            assert found[name].tobytes() == values.tobytes(), name
        assert version.dense.keys() == dense.keys()
        for name, values in dense.items():
            assert np.asarray(version.dense[name]).tobytes() == values.tobytes(), name


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_a_bundle_with_its_deltas_is_a_full_export_to_the_bit(
    saved_run, tmp_path, dtype
):
    config, run = saved_run
    bundle = tmp_path / "bundle"
    export(config, str(run), step=3, folder=str(bundle), rows=dtype)
    before, _ = exported(config, run, 3, tmp_path / "3", dtype)
    versions = Versions(Bundle(bundle))
    for number, step in enumerate(STEPS[1:], 1):
        delta = publish(config, str(run), step=step, folder=str(bundle), dense_every=3)
        versions.apply(deltas.file_of(bundle, number))
        rows, dense = exported(config, run, step, tmp_path / str(step), dtype)
        assert (delta.dense is not None) == (number == 3)
        assert delta.header.is_complete
        # Only what has changed is in it, and all of that.
        for name, values in rows.items():
            changed = [
                i for i, row in enumerate(values) if (row != before[name][i]).any()
            ]
            found = delta.changes[name].ids.tolist() if name in delta.changes else []
            assert found == changed
        before = rows
    assert sum(len(x) for x in rows.values()) > delta.num_rows > 0
    assert_same(versions, rows, dense)
    scorer, whole = Scorer(bundle, sizes=(8,)), Scorer(tmp_path / "10", sizes=(8,))
    raw = whole.bundle.golden["features"]
    assert not np.array_equal(scorer.logits(raw), whole.logits(raw))
    assert (scorer.catch_up(), scorer.number, scorer.step) == (3, 3, 10)
    np.testing.assert_array_equal(scorer.logits(raw), whole.logits(raw))
    assert scorer.logits_at(raw)[1] == 10
    assert scorer.catch_up() == 0


def test_a_limit_sends_what_has_moved_furthest_and_forgets_nothing(published, tmp_path):
    config, run, bundle = published
    before, _ = exported(config, run, 3, tmp_path / "3")
    after, _ = exported(config, run, 6, tmp_path / "6")
    moved = sorted(
        (-float(np.linalg.norm(after[name][i] - before[name][i])), *name, i)
        for name in before
        for i in range(len(before[name]))
        if (after[name][i] != before[name][i]).any()
    )
    row_bytes = 4 * 4 + 4
    delta = publish(
        config, str(run), step=6, folder=str(bundle), max_bytes=30 * row_bytes + 5
    )
    assert not delta.header.is_complete
    sent = {
        (*name, int(i)) for name, own in delta.changes.items() for i in own.ids.tolist()
    }
    assert len(moved) > 40
    assert sent == {(role, table, i) for _, role, table, i in moved[:30]}
    # Rows that step 6 left behind come later, though no step touched them again.
    publish(config, str(run), step=9, folder=str(bundle), max_bytes=row_bytes)
    last = publish(config, str(run), step=10, folder=str(bundle))
    assert last.header.is_complete
    versions = Versions(Bundle(bundle))
    for number in (1, 2, 3):
        versions.apply(deltas.file_of(bundle, number))
    assert_same(versions, *exported(config, run, 10, tmp_path / "10"))


def test_what_cannot_be_published_is_told(published):
    config, run, bundle = published
    assert publish(config, str(run), step=3, folder=str(bundle)) is None
    other = Publisher(bundle, config_hash=run_folder.hash_of(config))
    assert publish(config, str(run), folder=str(bundle)).header.step == 10
    with pytest.raises(ConfigError, match=r"is at step 10 already \(delta 1\)"):
        publish(config, str(run), step=6, folder=str(bundle))
    with pytest.raises(ConfigError, match="--dense_every=0 must be at least 1"):
        publish(config, str(run), folder=str(bundle), dense_every=0)
    with pytest.raises(ConfigError, match="no such checkpoint"):
        publish(config, str(run), step=4, folder=str(bundle))
    with pytest.raises(ConfigError, match="from a run of configuration"):
        Publisher(bundle, config_hash="another")
    late = deltas.make(other.bundle, {}, None, number=1, previous_step=3, step=6)
    with pytest.raises(DeltaError, match="something else publishes"):
        deltas.write(bundle, late)
    assert deltas.numbers(bundle) == [1]
    assert not list((bundle / "deltas").glob("*.part"))


# ---------------------------------------------------------------- applying


def made_up(bundle, number, value, *, base="", step=None):
    """Writes a delta that sets every row, and every dense parameter, to a value."""
    opened = Bundle(bundle)
    role = opened.roles["embedding"]
    changes = {
        ("embedding", table): Change(
            ids=np.arange(rows, dtype=np.int32),
            rows=np.full((rows, role.dim), value, np.float32),
        )
        for table, rows in role.tables.items()
    }
    before = opened.signature["step"] + number - 1
    header = Header(
        base=base or opened.signature["id"],
        number=number,
        previous_step=before if step is None else step,
        step=before + 1,
        is_complete=True,
        has_dense=True,
        tables=[list(name) for name in changes],
    )
    dense = {name: np.full_like(x, value) for name, x in opened.dense.items()}
    return deltas.write(bundle, Delta(header=header, changes=changes, dense=dense))


@pytest.fixture
def copied(deep_run, tmp_path):
    return shutil.copytree(deep_run[1] / "bundle", tmp_path / "copy")


def test_deltas_are_applied_in_order_or_not_at_all(copied):
    paths = {n: made_up(copied, n, 0.01 * n) for n in (1, 2, 3)}
    scorer = Scorer(copied, sizes=(32,))
    raw = scorer.bundle.golden["features"]
    own = scorer.logits(raw)

    def refused(path, message):
        number, before = scorer.number, scorer.logits(raw)
        with pytest.raises(DeltaError, match=message):
            scorer.apply(path)
        assert scorer.number == number
        np.testing.assert_array_equal(scorer.logits(raw), before)

    refused(paths[2], "is delta 2 from step .*, but next is delta 1 from step")
    scorer.apply(paths[1])
    assert not np.allclose(scorer.logits(raw), own)
    refused(paths[1], "next is delta 2")
    refused(paths[3], "next is delta 2")
    refused(copied / "deltas/00000009.npz", "cannot be read .*No such file")
    paths[2].unlink()
    refused(made_up(copied, 2, 0.0, base="f00"), "belongs to bundle f00")
    deltas.file_of(copied, 2).unlink()
    refused(made_up(copied, 2, 0.0, step=7_000), "from step 7,000")
    with pytest.raises(DeltaError, match="next is delta 2"):
        scorer.catch_up()
    deltas.file_of(copied, 2).unlink()
    with pytest.raises(DeltaError, match="No such file"):
        scorer.catch_up()
    made_up(copied, 2, 0.02)
    assert scorer.catch_up() == 2
    assert Scorer(copied, sizes=(32,)).number == 0  # files of the bundle are as before


def test_a_damaged_delta_changes_nothing(copied, tmp_path):
    path = made_up(copied, 1, 0.5)
    whole = path.read_bytes()
    versions, bundle = Versions(Bundle(copied)), Bundle(copied)
    rows = {name: values.copy() for name, values in flat(bundle.map_rows()).items()}
    good = deltas.read(path, bundle)
    rng, refused = np.random.default_rng(0), 0
    broken = tmp_path / "broken.npz"
    for _ in range(400):
        data = bytearray(whole)
        if rng.random() < 0.2:
            data = data[: rng.integers(len(data))]
        else:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        broken.write_bytes(data)
        try:
            delta = deltas.read(broken, bundle)
        except DeltaError as error:
            assert str(broken) in str(error)
            refused += 1
        else:  # a byte that says nothing, such as a date
            assert delta.header == good.header
            for name, change in good.changes.items():
                np.testing.assert_array_equal(delta.changes[name].rows, change.rows)
            for name, values in good.dense.items():
                np.testing.assert_array_equal(delta.dense[name], values)
    assert refused > 300
    assert_same(versions, rows, bundle.dense)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2"),
        ({"tables": 3}, "its list of tables"),
        ({"tables": [["embedding", "tag"], ["x"]]}, "cannot be read"),
        ({"tables": [["embedding", "unknown"]]}, "cannot be read"),
        ({"tables": [["embedding", "age"]]}, "ids or rows of embedding/age"),
        ({"number": "1"}, "number must be int"),
        ({"has_dense": True}, "other dense parameters"),
    ],
)
def test_a_delta_that_does_not_fit_its_bundle_is_told(copied, change, message):
    bundle = Bundle(copied)
    header = {
        "base": bundle.signature["id"],
        "number": 1,
        "previous_step": bundle.signature["step"],
        "step": 99,
        "is_complete": True,
        "has_dense": False,
        "tables": [["embedding", "tag"]],
    }
    header |= change
    path = copied / "made.npz"
    ids, rows = np.array([3, 39], np.int32), np.zeros((2, 4), np.float32)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **{"header": text, "ids/0": ids, "rows/0": rows})
    with pytest.raises(DeltaError, match=message):
        deltas.read(path, bundle)


def test_requests_see_all_of_a_delta_or_nothing_of_it(copied):
    last = 12
    scorer = Scorer(copied, sizes=(32,))
    raw = scorer.bundle.golden["features"]
    many = {name: values * 4 for name, values in raw.items()}  # in pieces of 32
    expected = {scorer.step: scorer.logits(many)}
    for number in range(1, last + 1):
        made_up(copied, number, 0.1 * (-1) ** number * number)
    other = Scorer(copied, sizes=(32,))
    for number in range(1, last + 1):
        other.apply(deltas.file_of(copied, number))
        expected[other.step] = other.logits(many)
    found, errors, is_over = [], [], threading.Event()

    def score():
        latest = 0
        try:
            while not is_over.is_set():
                logits, step = scorer.logits_at(many)
                found.append(step)
                assert step >= latest
                latest = step
                np.testing.assert_array_equal(logits, expected[step])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, last + 1):
        seen = len(found)
        while len(found) < seen + 4 and not errors:
            pass
        scorer.apply(deltas.file_of(copied, number))
    is_over.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len({*found}) > 6
    assert scorer.number == last
