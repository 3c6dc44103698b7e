"""The scorer says what the trainer says, whatever it is given and from any thread."""

from concurrent import futures
import hashlib
import json
import math
import pathlib
import shutil
import subprocess
import sys

from every_kind import CARD, arrow, columns
import numpy as np
from orbax.checkpoint import v1 as ocp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import quickstart
from rankax import export as exporting
from rankax.config.base import ConfigError
from rankax.data import packing
from rankax.data.errors import DataError
from rankax.data.schema import Schema
from rankax.export import ParityError, export
from rankax.predict import predict
from rankax.serving import FeatureError, Scorer, features
from rankax.serving.bundle import Bundle, BundleError
from rankax.train import train

SCHEMA = Schema.select(CARD, default_row=True)
TEXT_IDS = frozenset({"tags", "past_tags"})
USER = ("user_id", "age", "past_items", "past_tags")  # what candidates share


@pytest.fixture(scope="module")
def raw():
    return columns(np.random.default_rng(7), 60)


@pytest.fixture(scope="module")
def scorer(deep_run):
    return Scorer(deep_run[1] / "bundle", sizes=(1, 8, 32))


# ------------------------------------------------------------ an independent path

MASK = 2**64 - 1


def finalise(h):
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & MASK
    h = (h ^ h >> 27) * 0x94D049BB133111EB & MASK
    return h ^ h >> 31


def hashed_row(value, table, num_rows):
    if isinstance(value, str):
        data = value.encode()
        h = (len(data) + 1) * 0x9E3779B97F4A7C15 & MASK
        for start in range(0, max(len(data), 1), 8):
            h = finalise(h ^ int.from_bytes(data[start : start + 8], "little"))
        value = h
    salt = int.from_bytes(hashlib.blake2b(table.encode(), digest_size=8).digest())
    return (finalise(value & MASK ^ salt) >> 31) * num_rows >> 33


def item_row(value):
    return value if 0 <= value < 30 else 30


def linear_logits(arrays, raw, i):
    """Logits [2] of one example by LR, value by value."""
    rows = {name.rpartition("/")[2]: x for name, x in arrays.items() if "rows/" in name}
    mean = lambda weights: sum(weights) / max(len(weights), 1)  # noqa: E731
    user = rows["user"][hashed_row(raw["user_id"][i], "user", 50)]
    item = rows["item"][item_row(0 if raw["item"][i] is None else raw["item"][i])]
    age = 3 if raw["age"][i] is None else sum(raw["age"][i] >= b for b in (18, 30, 50))
    tags = [rows["tag"][hashed_row(t, "tag", 40)] for t in (raw["tags"][i] or [])[-3:]]
    likes = zip(raw["likes"][i], raw["like_weights"][i], strict=True)
    liked = sum(rows["item"][like] * w for like, w in [*likes][-4:])
    past = [rows["item"][item] for item in raw["past_items"][i][-5:]]
    past_tags = [
        rows["tag"][hashed_row(t, "tag", 40)] for t in raw["past_tags"][i][-5:]
    ]
    price = 1.0 if raw["price"][i] is None else raw["price"][i]
    numbers = [math.log1p(max(price, 0)), (raw["score"][i] - 3) / 2]
    numbers += raw["picture"][i] or [0, 0, 0]
    (numeric,) = (x for name, x in arrays.items() if name.endswith("backbone/numeric"))
    (bias,) = (x for name, x in arrays.items() if name.endswith("backbone/bias"))
    total = user + item + rows["age"][age] + mean(tags) + liked + mean(past)
    return total + mean(past_tags) + np.asarray(numbers) @ numeric + bias


def test_probabilities_are_those_of_a_loop_over_every_value(linear_run, raw):
    _, folder, _ = linear_run
    # The plain checkpoint needs nothing of ours.
    arrays = ocp.load(str(folder / "bundle" / "orbax"))
    arrays = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
    scorer = Scorer(folder / "bundle", sizes=(64,))
    expected = np.array([linear_logits(arrays, raw, i) for i in range(60)])
    np.testing.assert_allclose(scorer.logits(raw), expected, atol=2e-5)
    for t, task in enumerate(("click", "buy")):
        found = scorer.score(raw)[task]
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-expected[:, t])), atol=1e-5)


# ------------------------------------------------------------ like the trainer


def test_features_become_the_arrays_that_training_reads(raw):
    table = (
        arrow(raw).append_column("click", [[0] * 60]).append_column("buy", [[1] * 60])
    )
    arrays = packing.pack(table, SCHEMA, where="test")
    packed = features.pack(SCHEMA, raw, {}, text_ids=TEXT_IDS)
    ids = np.concatenate(packed.ids, axis=1)
    np.testing.assert_array_equal(ids, arrays["ids"])
    for name in ("lengths", "numeric", "bag_weights"):
        np.testing.assert_array_equal(getattr(packed, name), arrays[name], name)
    as_arrays = {
        name: np.asarray(values)
        for name, values in raw.items()
        if name in ("user_id", "score")
    }
    again = features.pack(SCHEMA, raw | as_arrays, {}, text_ids=TEXT_IDS)
    np.testing.assert_array_equal(np.concatenate(again.ids, axis=1), arrays["ids"])


def test_ids_of_another_kind_are_not_predicted(every_kind, linear_run, tmp_path):
    config, folder, _ = linear_run
    data = tmp_path / "later"
    shutil.copytree(every_kind, data)
    (shard,) = (data / "test").glob("*.parquet")
    rows = pq.read_table(shard)
    place, texts = rows.column_names.index("user_id"), rows["user_id"].cast(pa.string())
    pq.write_table(rows.set_column(place, "user_id", texts), shard)
    with pytest.raises(DataError, match="'user_id' holds texts, and in training it"):
        predict(config, str(folder), data=f"{data}/test", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_texts_are_whole_whatever_they_end_in(raw):
    texts = ["", "a", "a\0", "a\0\0", "\0", "ü\0b"]
    own = {name: values[:6] for name, values in raw.items()}
    own |= {"tags": [[text] for text in texts]}
    table = arrow(own).append_column("click", [[0] * 6]).append_column("buy", [[1] * 6])
    expected = packing.pack(table, SCHEMA, where="test")["ids"]
    found = np.concatenate(
        features.pack(SCHEMA, own, {}, text_ids=TEXT_IDS).ids, axis=1
    )
    np.testing.assert_array_equal(found, expected)
    (slot,) = (slot for slot in SCHEMA.slots if slot.column == "tags")
    rows = [hashed_row(text, "tag", 40) for text in texts]
    assert found[:, slot.start].tolist() == rows and len(set(rows)) > 3


def test_only_a_bundle_is_replaced_and_only_by_one_that_agrees(
    linear_run, tmp_path, monkeypatch
):
    config, folder, _ = linear_run
    mine = tmp_path / "models"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for place in (folder, mine, mine / "notes.txt"):
        with pytest.raises(
            ConfigError, match=r"is no bundle \(it has no signature.json"
        ):
            export(config, str(folder), folder=str(place))
    bundle = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", bundle)
    before = (bundle / "signature.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "TOLERANCE", -1.0)
        with pytest.raises(ParityError, match="is not kept: on 200 examples of the"):
            export(config, str(folder), folder=str(bundle))
    assert (bundle / "signature.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "models"]
    signature = export(config, str(folder), folder=str(bundle))
    assert Bundle(bundle).signature["id"] == signature["id"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "models"]


@pytest.mark.parametrize("run", ["linear_run", "deep_run"])
def test_the_certificate_tells_of_equal_probabilities(run, request):
    _, folder, signature = request.getfixturevalue(run)
    parity = signature["parity"]
    assert parity["examples"] == 200 and parity["max_probability_difference"] <= 1e-6
    saved = json.loads((folder / "bundle" / "signature.json").read_text())
    assert saved["parity"] == parity and saved["metrics"]["click/auc"] > 0
    assert saved["inputs"]["tags"]["type"] == "list of text ids"
    assert saved["inputs"]["price"]["default"] == 1.0


def test_a_named_checkpoint_is_exported_to_a_named_folder(linear_run, tmp_path):
    config, folder, best = linear_run
    with pytest.raises(ConfigError, match=r"--step=7: .* only those of steps \[10\]"):
        export(config, str(folder), step=7, folder=str(tmp_path / "other"))
    made = export(config, str(folder), step=10, folder=str(tmp_path / "other"))
    assert made["step"] == best["step"] == 10 and made["metrics"] == best["metrics"]
    assert sorted(x.name for x in tmp_path.iterdir()) == ["other"]


def test_rounded_rows_take_half_the_room_and_tell_what_they_cost(deep_run, tmp_path):
    config, folder, exact = deep_run
    made = export(config, str(folder), rows="bfloat16", folder=str(tmp_path / "half"))
    parity = made["parity"]
    assert 1e-6 < parity["max_probability_difference"] < 0.01
    assert abs(parity["click/auc_difference"]) < 0.02
    assert 0 < abs(parity["buy/log_loss_difference"]) < 0.01
    assert "click/auc_difference" not in exact["parity"]
    name = "rows/embedding-user.npy"
    rows, half = (np.load(x / name) for x in (folder / "bundle", tmp_path / "half"))
    assert half.dtype == np.uint16 and half.nbytes == rows.nbytes // 2
    widened = (half.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(widened, rows, rtol=2**-8)


def test_shared_features_are_those_of_every_candidate(scorer, raw):
    shared = {name: raw[name][3] for name in USER}
    candidates = {name: raw[name] for name in raw if name not in USER}
    repeated = candidates | {name: [value] * 60 for name, value in shared.items()}
    np.testing.assert_array_equal(
        scorer.logits(candidates, shared), scorer.logits(repeated)
    )
    one = {name: values[5] for name, values in candidates.items()}
    np.testing.assert_allclose(
        scorer.logits({}, shared | one)[0], scorer.logits(repeated)[5], atol=1e-6
    )


def test_any_number_of_candidates_scores_like_each_alone(scorer, raw):
    alone = np.concatenate(
        [scorer.logits({k: v[i : i + 1] for k, v in raw.items()}) for i in range(60)]
    )
    for n in (0, 1, 2, 8, 31, 33, 60):
        found = scorer.logits({name: values[:n] for name, values in raw.items()})
        np.testing.assert_allclose(found, alone[:n], atol=1e-6)


def test_threads_do_not_disturb_each_other(scorer, raw):
    expected = scorer.logits(raw)
    with futures.ThreadPoolExecutor(8) as pool:
        pieces = pool.map(
            lambda i: scorer.logits({k: v[i : i + 5] for k, v in raw.items()}),
            list(range(0, 60, 5)) * 10,
        )
    for i, piece in enumerate(pieces):
        start = i * 5 % 60
        np.testing.assert_allclose(piece, expected[start : start + 5], atol=1e-6)


def test_ids_outside_of_their_table_are_counted(deep_run, raw):
    scorer = Scorer(deep_run[1] / "bundle", sizes=(64,))
    assert scorer.out_of_vocabulary == {"item": 0, "age": 0}
    outside = sum(x is not None and not 0 <= x < 30 for x in raw["item"])
    scorer.score(raw)
    assert outside > 3 and scorer.out_of_vocabulary == {"item": outside, "age": 0}
    candidates = {name: values for name, values in raw.items() if name != "item"}
    scorer.score(candidates, {"item": 999})
    assert scorer.out_of_vocabulary["item"] == outside + 60


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prices": [1.0]}, "unknown feature 'prices'; did you mean 'price'?"),
        ({"score": None}, "feature 'score' must be a list of one value for each"),
        ({"score": 3.0}, "a value that all have in common is given as shared"),
        ({"score": [None]}, "feature 'score' is None and has no default"),
        ({"score": ["3"]}, "feature 'score' must be one number for each candidate"),
        ({"score": [math.nan]}, "'score' holds numbers that are not finite"),
        ({"score": [1.0, 2.0]}, "has 2 values and 'user_id' has 1"),
        ({"user_id": [1.5]}, "'user_id' must be integers of 64 bits, found"),
        ({"user_id": [True]}, "'user_id' must be integers of 64 bits, found"),
        ({"user_id": [2**70]}, "'user_id' must be integers of 64 bits, found"),
        ({"user_id": ["42"]}, "'user_id' must be integers of 64 bits, found ['42']"),
        ({"item": ["book"]}, "'item' must be integers of 64 bits, found ['book']"),
        ({"tags": [[1, 2]]}, "'tags' must be texts, as in training, found [1, 2]"),
        ({"tags": ["red"]}, "feature 'tags' must be a list for each candidate"),
        ({"tags": [[["red"]]]}, "feature 'tags' must be texts, as in training"),
        ({"tags": [{"red": 1}]}, "feature 'tags' must be a list for each candidate"),
        ({"tags": [["red", 1]]}, "feature 'tags' must be texts, as in training"),
        (
            {"tags": [[None, 1]]},
            "'tags' must be texts, as in training, found ['none', 1]",
        ),
        ({"score": {"3": 1}}, "feature 'score' must be a list of one value for each"),
        ({"picture": [[1.0]]}, "must be lists of 3 numbers, found 1"),
        ({"like_weights": [[]]}, "'likes' and 'like_weights' of 'likes' must have"),
        ({"past_tags": [["red"]]}, "of 'history' must have lists of equal lengths"),
    ],
)
def test_features_that_cannot_be_scored_are_told(scorer, raw, change, message):
    one = {name: values[:1] for name, values in raw.items()}
    one |= {"likes": [[1, 2]], "like_weights": [[0.5, 1.0]], "item": [4]}
    one |= {"past_items": [[1, 2]], "past_tags": [["a", "b"]]}
    scorer.score(one)
    with pytest.raises(FeatureError) as error:
        scorer.score(one | change)
    assert message in str(error.value)


def test_a_list_and_its_weights_may_be_shared_or_not(scorer, raw):
    one = {name: values[:2] for name, values in raw.items()}
    one |= {"likes": [[1, 2], [3, 4]], "like_weights": [[0.5, 1.0]] * 2}
    without = {name: x for name, x in one.items() if name != "like_weights"}
    found = scorer.logits(without, {"like_weights": [0.5, 1.0]})
    np.testing.assert_array_equal(found, scorer.logits(one))
    with pytest.raises(FeatureError, match="must have lists of equal lengths"):
        scorer.logits(without, {"like_weights": [0.5]})


def test_a_missing_feature_takes_its_default_or_is_told(scorer, raw):
    nulls = raw | {"price": [None] * 60}
    without = {name: values for name, values in raw.items() if name != "price"}
    np.testing.assert_array_equal(scorer.logits(without), scorer.logits(nulls))
    del without["score"]
    with pytest.raises(FeatureError, match="'score' is missing and has no default"):
        scorer.score(without)


def test_a_signature_with_any_entry_changed_opens_as_it_was_or_is_told(
    deep_run, tmp_path
):
    copy = shutil.copytree(deep_run[1] / "bundle", tmp_path / "copy")
    path = copy / "signature.json"
    tree, whole = json.loads(path.read_text()), Bundle(copy)
    gone, refused = object(), []
    role = tree["roles"]["embedding"]
    for own in (tree, tree["roles"], role, role["tables"], tree["files"]):
        for name, value in list(own.items()):
            for other in (gone, None, -1, "x", "../x", [], {}, [1], {"x": 1}):
                own[name] = other
                if other is gone:
                    del own[name]
                path.write_text(json.dumps(tree))
                try:
                    bundle = Bundle(copy)
                    assert bundle.map_rows().keys() == whole.map_rows().keys()
                except DataError as error:  # of which BundleError is one
                    assert str(copy) in str(error) or "card" in str(error)
                    refused.append(name)
                else:
                    assert bundle.schema == whole.schema, (name, other)
                own[name] = value
    needed = {"format", "card", "fields", "tasks", "default_row", "roles", "files"}
    needed |= {"id", "step", "digests", "text_ids"}
    assert needed | {"embedding", "dim", "dtype", "tables", "user"} <= {*refused}


def test_damaged_bundles_are_told(deep_run, tmp_path):
    whole = deep_run[1] / "bundle"
    for number, (name, data, message) in enumerate(
        [
            ("signature.json", b"{", "is not a bundle"),
            ("signature.json", b'{"format": 9}', "has format 9, this version reads 2"),
            ("signature.json", b'{"format": 2}', "is damaged"),
            ("dense.npz", b"", "dense.npz has 0 bytes, its signature says"),
            ("rows/embedding-tag.npy", None, "embedding-tag.npy has 0 bytes"),
        ]
    ):
        copy = shutil.copytree(whole, tmp_path / str(number))
        if data is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(data)
        with pytest.raises(BundleError, match=message):
            Scorer(copy)
    copy = shutil.copytree(whole, tmp_path / "flipped")
    for path in copy.glob("rows/*.npy"):
        flipped = bytearray(path.read_bytes())
        flipped[128:] = bytes(len(flipped[128:]))
        path.write_bytes(flipped)
    with pytest.raises(BundleError, match="does not score its golden candidates"):
        Scorer(copy, sizes=(32,))


def test_a_flipped_bit_of_a_small_file_is_told(deep_run, tmp_path):
    copy, rng = shutil.copytree(deep_run[1] / "bundle", tmp_path / "copy"), _rng()
    for name in ("dense.npz", "score.jax_export", "golden.json"):
        whole = (copy / name).read_bytes()
        for _ in range(20):
            flipped = bytearray(whole)
            flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            (copy / name).write_bytes(flipped)
            with pytest.raises(BundleError, match=f"{name} is damaged: it is not what"):
                Scorer(copy, sizes=(32,))
        (copy / name).write_bytes(whole)
    assert Scorer(copy, sizes=(32,)).number == 0


def test_a_flipped_bit_in_the_head_of_rows_is_told_or_means_nothing(deep_run, tmp_path):
    copy, rng = shutil.copytree(deep_run[1] / "bundle", tmp_path / "copy"), _rng()
    path = copy / "rows/embedding-tag.npy"
    whole, expected = path.read_bytes(), Bundle(copy).map_rows()["embedding"]["tag"]
    refused = 0
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[rng.integers(128)] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            found = Bundle(copy).map_rows()["embedding"]["tag"]
        except BundleError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected)
    assert refused > 50


def _rng():
    return np.random.default_rng(0)


@pytest.mark.slow
def test_the_demo_of_the_docs(tmp_path, monkeypatch, capsys):
    text = (pathlib.Path(__file__).parents[2] / "docs/serving.md").read_text()
    demo = text.partition("<!-- demo -->\n```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    config = quickstart.get_config("lr")
    config.data.source.num_train_rows = config.data.source.num_valid_rows = 4096
    config.data.source.num_test_rows = 512
    train(config, "runs/quickstart")
    export(config, "runs/quickstart")
    capsys.readouterr()
    exec(demo, {})
    first, second = capsys.readouterr().out.splitlines()
    # The first candidate has the user that all have in the second request.
    assert first.startswith("[0.") and first.split()[0] == second.split()[0]


def test_scoring_imports_neither_the_trainer_nor_arrow():
    code = (
        "import sys, rankax.serving\n"
        "heavy = {'flax', 'optax', 'orbax', 'grain', 'pyarrow', 'absl', 'rich'}\n"
        "sys.exit(str(sorted(heavy & {n.split('.')[0] for n in sys.modules}) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() in ("", "[]"), done.stderr
