"""Content of data, cards and run folders is read, never executed, followed or believed."""

import ast
import dataclasses
import json
import pathlib
import shutil

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pyarrow as pa
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data import card as cards
from rankax.data import lanes, transforms
from rankax.data.card import (
    Card,
    CategoricalField,
    Clip,
    Label,
    Log1p,
    NumericField,
    SequenceColumn,
    SequenceField,
    Slice,
    Split,
    Table,
    VectorField,
)
from rankax.data.errors import DataError
from rankax.data.order import Position
from rankax.data.parquet import ParquetSplit
from rankax.data.schema import Schema
from rankax.observe.writers import MetricsWriter, read_metrics
from rankax.train import Progress
from rankax.training import run_folder

ROOT = pathlib.Path(__file__).parents[1]

# ---------------------------------------------------------------- nothing is executed

# Files of --config are Python programs, and documented as such; absl's config_flags
# runs them, before any data is looked at. All that our own sources may do is here.
ALLOWED = {
    # Counts of a part of the input, written and read back by one conversion into its
    # own hidden folder; nobody downloads them or hands them on.
    ("data_pipelines/engine/parts.py", "import pickle"),
    ("data_pipelines/engine/conversion.py", "import pickle"),
}
UNPICKLING = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib"}
UNPICKLING |= {"cloudpickle", "jsonpickle", "imp", "runpy", "code"}
EXECUTING = {"eval", "exec", "compile", "__import__"}
LOADING = {  # what unpickles or executes unless a keyword says not to
    "load": ("allow_pickle", {"np", "numpy"}),
    "extractall": ("filter", {"tarfile"}),
}
ALWAYS = {("yaml", "load"), ("yaml", "unsafe_load"), ("torch", "load")}
ALWAYS |= {("pd", "read_pickle"), ("pandas", "read_pickle"), ("os", "system")}


def findings(source: str) -> set[str]:
    """What of a source executes or unpickles content."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                if name.partition(".")[0] in UNPICKLING:
                    found.add(f"import {name}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in EXECUTING:
                found.add(f"{node.func.id}()")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            if (owner, name) in ALWAYS:
                found.add(f"{owner}.{name}()")
            keyword, owners = LOADING.get(name, ("", set()))
            values = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if owner in owners and values.get(keyword) not in ("False", "'data'"):
                found.add(f"{owner}.{name}() without {keyword}")
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", {"import pickle"}),
        ("from marshal import loads", {"import marshal"}),
        ("import numpy as np\nnp.load(p)", {"np.load() without allow_pickle"}),
        ("np.load(p, allow_pickle=True)", {"np.load() without allow_pickle"}),
        ("np.load(p, allow_pickle=False)", set()),
        ("eval(text)", {"eval()"}),
        ("model.eval()", set()),
        ("re.compile(text)", set()),
        ("yaml.load(f)", {"yaml.load()"}),
        ("torch.load(f, weights_only=True)", {"torch.load()"}),
    ],
)
def test_the_search_finds_what_it_is_for(source, expected):
    assert findings(source) == expected


def test_nothing_unpickles_or_evaluates_content():
    found = {
        (path.relative_to(ROOT).as_posix(), finding)
        for folder in ("rankax", "data_pipelines")
        for path in (ROOT / folder).rglob("*.py")
        for finding in findings(path.read_text())
    }
    assert found == ALLOWED


# ---------------------------------------------------------------- nothing leads outside

CARD = Card(
    name="shop",
    tables=(Table(name="user", num_rows=7), Table(name="item", num_rows=9, ids="hash")),
    fields=(
        CategoricalField(name="user", table="user", column="user_id"),
        CategoricalField(
            name="tags", table="item", max_length=3, combiner="sum", weights="w_tags"
        ),
        CategoricalField(name="age", table="user", default=6, boundaries=(18, 30.5)),
        NumericField(name="views", default=0.5, transforms=(Clip(minimum=0), Log1p())),
        VectorField(name="image", width=4, default=0),
        SequenceField(
            name="words",
            columns=(SequenceColumn(name="w", table="item", column="w", default=""),),
            max_length=2,
        ),
    ),
    labels=(Label(name="ctr", column="click", true_probability="p"),),
    splits={"train": Split(num_rows=3, positive_rate={"ctr": 0.25})},
    group="user_id",
    time="t",
    slices=(Slice(name="age", column="age_range", values=("young", "old")),),
)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc", "a/b", "a\\b", "..", ".", ".hidden", "", "a\0b", "a\nb", "\ud800"],
)
def test_a_split_cannot_be_named_for_a_place_outside(name):
    with pytest.raises(DataError, match="cannot be the name of a split"):
        dataclasses.replace(CARD, splits={name: Split(num_rows=3)})


@pytest.fixture
def outside(tmp_path):
    """A dataset folder, and a shard that lies beside it."""
    card = Card(
        name="made",
        tables=(Table(name="row", num_rows=9),),
        fields=(CategoricalField(name="row", table="row"),),
        labels=(Label(name="click"),),
        splits={"train": Split(num_rows=3)},
    )
    (tmp_path / "made/train").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    card.save(tmp_path / "made")
    table = pa.table({"row": [0, 1, 2], "click": [0, 1, 0]})
    pa.parquet.write_table(table, tmp_path / "other/0.parquet")
    return tmp_path / "made", tmp_path / "other/0.parquet", Schema.select(card)


def test_a_link_out_of_the_dataset_folder_is_refused(outside):
    folder, shard, schema = outside
    link = folder / "train/0.parquet"
    link.symlink_to(shard)
    with pytest.raises(DataError, match="a link that leads out of the dataset folder"):
        ParquetSplit(folder, "train", schema)
    link.unlink()
    link.parent.rmdir()
    link.parent.symlink_to(shard.parent)
    with pytest.raises(DataError, match="a link that leads out of the dataset folder"):
        ParquetSplit(folder, "train", schema)


def test_links_to_and_within_the_dataset_folder_are_followed(outside):
    folder, shard, schema = outside
    shutil.copy(shard, folder / "kept")
    (folder / "train/0.parquet").symlink_to(folder / "kept")
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert ParquetSplit(link, "train", schema).rows_per_group.tolist() == [3]


# ---------------------------------------------------------------- nothing is believed

fuzzed = hypothesis.settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
# What each place of a file is once replaced by.
NASTY = [None, True, -1, 0, 1, 2, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0]
NASTY += [1e308, 1e-320, float("nan"), float("inf"), -float("inf"), "", "user", "7"]
NASTY += [
    "../x",
    "a\0b",
    "a\nb",
    "\ud800",
    [],
    {},
    [1],
    [[]],
    ["a"],
    {"a": 1},
    {"": []},
]
JSON = st.recursive(
    st.sampled_from(NASTY) | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree, path=()):
    """Paths of all values inside a JSON tree."""
    items = []
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(tree):
    """Yields a JSON tree with one value replaced, each by each of `NASTY`."""
    text = json.dumps(tree)
    for *parents, last in places(tree):
        for value in NASTY:
            changed_tree = json.loads(text)
            node = changed_tree
            for key in parents:
                node = node[key]
            node[last] = value
            yield changed_tree


@st.composite
def changed(draw, tree):
    """A JSON tree with one to three values replaced, deleted, added or swapped."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(tree))
        if not known:
            break
        *parents, last = draw(st.sampled_from(known))
        node = tree
        for key in parents:
            node = node[key]
        match draw(st.sampled_from(["replace", "delete", "add", "copy"])):
            case "replace":
                node[last] = draw(JSON)
            case "delete":
                del node[last]
            case "add" if isinstance(node, dict):
                node[draw(st.text(max_size=4))] = draw(JSON)
            case "copy" if isinstance(node, list):
                node.append(node[last])
    return tree


@st.composite
def damaged(draw, content: bytes):
    """Bytes with some flipped, cut out, put in, or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "put", "end"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + draw(st.integers(1, 20))]
            case "put":
                data[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "end":
                del data[at:]
    return bytes(data)


def check_card(load):
    """A card that loads means what it says: written and read it is the same."""
    try:
        card = load()
    except DataError:
        return
    text = card.to_json()
    assert cards.from_dict(json.loads(text), where="again").to_json() == text
    if not card.labels:  # of examples that are only to be scored
        with pytest.raises(DataError, match="names no label"):
            Schema.select(card)
        return
    schema = Schema.select(card)
    assert len(schema.tasks) == len(card.labels)
    assert schema.num_id_columns == sum(slot.width for slot in schema.slots)
    for table in schema.tables.values():
        rows = transforms.hash_rows(
            np.arange(5),
            num_rows=table.num_rows,
            salt=transforms.table_salt(table.name),
        )
        assert 0 <= rows.min() <= rows.max() < table.num_rows


@fuzzed
@hypothesis.given(tree=changed(json.loads(CARD.to_json())) | JSON)
def test_a_changed_card_loads_or_is_refused(tree):
    check_card(lambda: cards.from_dict(tree, where="card"))


def test_a_card_with_any_value_replaced_loads_or_is_refused():
    for tree in replaced(json.loads(CARD.to_json())):
        check_card(lambda tree=tree: cards.from_dict(tree, where="card"))


@fuzzed
@hypothesis.given(content=damaged(CARD.to_json().encode()))
def test_a_damaged_card_loads_or_is_refused(tmp_path, content):
    (tmp_path / cards.FILE_NAME).write_bytes(content)
    check_card(lambda: cards.load(tmp_path))


def test_json_nested_too_deep_is_refused(tmp_path):
    (tmp_path / cards.FILE_NAME).write_text("[" * 100_000)
    with pytest.raises(DataError, match="not valid JSON"):
        cards.load(tmp_path)
    (tmp_path / run_folder.RESULT).write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="is damaged"):
        run_folder.read_result(tmp_path)


@dataclasses.dataclass
class Numbered:
    """A source whose only field is the number of the row in the split."""

    rows_per_group: np.ndarray
    name: str = "made/train"
    fingerprint: str = "0123456789ab"

    def read(self, group: int) -> pa.Table:
        start = int(self.rows_per_group[:group].sum())
        row = np.arange(start, start + self.rows_per_group[group])
        return pa.table({"row": row, "click": row % 2})

    def where(self, group: int) -> str:
        return f"{self.name} row group {group}"


NUMBERED = Numbered(np.array([5, 7, 4, 6]))
NUMBERED_SCHEMA = Schema.select(
    Card(
        name="made",
        tables=(Table(name="row", num_rows=22),),
        fields=(CategoricalField(name="row", table="row"),),
        labels=(Label(name="click"),),
        splits={},
    )
)
POSITION = lanes.start_position(NUMBERED, lanes=2, seed=0, shuffle=True).to_dict()


def rows_from(position: Position) -> list[list[int]]:
    """Rows of the batches from a position to the end of its epoch."""
    batches = lanes.read_batches(
        NUMBERED,
        NUMBERED_SCHEMA,
        batch_size=2,
        lanes=2,
        seed=0,
        shuffle=True,
        num_epochs=position.epoch + 1,
        position=position,
    )
    return [batch["ids"][:, 0].tolist() for batch, _ in batches]


@fuzzed
@hypothesis.given(
    tree=changed(POSITION)
    | st.builds(
        lambda epoch, row: {**POSITION, "epoch": epoch, "rows_per_lane": row},
        st.integers(0, 3),
        st.integers(0, 12),
    )
    | JSON
)
def test_a_changed_position_reads_what_it_says_or_is_refused(tree):
    check_position(tree)


def test_a_position_with_any_value_replaced_is_refused_or_read():
    for tree in replaced(POSITION):
        check_position(tree)


def check_position(tree):
    try:
        position = Position.from_dict(tree)
        rows = rows_from(position)
    except DataError:
        return
    assert position.to_dict() == tree
    whole = rows_from(dataclasses.replace(position, rows_per_lane=0))
    assert rows == whole[position.rows_per_lane :] and rows
    assert sorted(row for batch in whole for row in batch) == list(range(22))


RECORD = dataclasses.asdict(
    Progress(
        position=POSITION,
        examples_seen=44,
        train_seconds=1.5,
        best_metrics={"ctr/auc": 0.7},
        tables={"embedding/row": {"looked_up": 44}},
    )
)


@fuzzed
@hypothesis.given(tree=changed(RECORD) | JSON)
def test_a_changed_record_of_a_checkpoint_is_read_as_it_is_or_refused(tree):
    check_record(tree)


def test_a_record_with_any_value_replaced_is_read_as_it_is_or_refused():
    for tree in replaced(RECORD):
        check_record(tree)


def check_record(tree):
    try:
        progress = Progress.from_dict(tree)
        if progress.position is not None:
            Position.from_dict(progress.position)
    except DataError:
        return
    same = json.dumps(dataclasses.asdict(progress), sort_keys=True)
    assert same == json.dumps(tree, sort_keys=True)
    assert progress.examples_seen >= 0 and progress.plateau.factor >= 0


@fuzzed
@hypothesis.given(data=st.data())
def test_damaged_files_of_a_run_folder_are_read_or_refused(tmp_path, data):
    config = ExperimentConfig()
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run_folder.write_config(folder, config)
    run_folder.write_json(
        folder / run_folder.RESULT, {"metrics": {"ctr/auc": 0.5}, "step": 3}
    )
    writer = MetricsWriter(folder, tensorboard=False)
    for step in range(3):
        writer.write(step=step, split="train", epoch=0.5, values={"loss": 0.5})
    writer.close()
    path = folder / data.draw(
        st.sampled_from([run_folder.CONFIG, run_folder.RESULT, "metrics.jsonl"])
    )
    if data.draw(st.booleans()) and path.suffix == ".json":
        tree = data.draw(changed(json.loads(path.read_text())))
        path.write_text(json.dumps(tree))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        assert run_folder.claim(str(folder), config) == folder
        result = run_folder.read_result(folder)
        run_folder.not_applied(folder, config)
        lines = read_metrics(folder)
    except (ConfigError, DataError) as error:
        assert str(path) in str(error) or f"--workdir={folder}" in str(error)
        return
    assert result is not None and isinstance(result["metrics"], dict)
    assert all(type(line["step"]) is int for line in lines)
    MetricsWriter(folder, tensorboard=False, resume_step=1).close()
    assert all(line["step"] <= 1 for line in read_metrics(folder))
