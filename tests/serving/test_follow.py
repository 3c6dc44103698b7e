"""A follower takes deltas in order and new bundles whole, and tells what it cannot take."""

import json
import logging
import threading
import time
import types

import pytest

from rankax.serving import delta
from rankax.serving.bundle import BundleError
from rankax.serving.delta import DeltaError
from rankax.serving.follow import Follower
from rankax.serving.versions import Versions


class FakeScorer:
    """Deltas are texts: the step that they lead to."""

    catch_up = Versions.catch_up
    _newest = property(lambda self: self)

    def __init__(self, folder):
        signature = json.loads((folder / "signature.json").read_text())
        if signature.get("is_bad"):
            raise BundleError(f"{folder} does not score its golden candidates")
        self.bundle = types.SimpleNamespace(signature=signature, folder=folder)
        self._bundle = self.bundle
        self.step, self.number = signature["step"], 0

    def apply(self, path):
        text = path.read_text() if path.exists() else "nothing"
        if not text.isdecimal():
            raise DeltaError(f"{path} cannot be read")
        self.step, self.number = int(text), self.number + 1


def write_bundle(folder, name, step, **more):
    folder.mkdir(exist_ok=True)
    draft = folder / "draft"
    draft.write_text(json.dumps({"id": name, "step": step, **more}))
    draft.rename(folder / "signature.json")


def write_delta(folder, number, text):
    path = delta.file_of(folder, number)
    path.parent.mkdir(exist_ok=True)
    path.write_text(str(text))


@pytest.fixture
def folder(tmp_path):
    write_bundle(tmp_path / "bundle", "first", 10)
    return tmp_path / "bundle"


@pytest.fixture
def follow(folder):
    followers = []

    def make(**options):
        follower = Follower(folder, **{"opener": FakeScorer, **options})
        followers.append(follower)
        return follower

    yield make
    for follower in followers:
        follower.stop()


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_deltas_that_are_there_are_applied_when_it_is_made(folder, follow):
    for number in (1, 2, 3):
        write_delta(folder, number, 10 + number)
    follower = follow(poll_seconds=0)
    assert (follower.scorer.step, follower.scorer.number) == (13, 3)
    assert (follower.num_deltas, follower.num_errors, follower.problem) == (3, 0, "")


def test_deltas_are_applied_as_they_appear(folder, follow):
    follower = follow(poll_seconds=0.01)
    assert follower.scorer.step == 10
    follower.start()
    for number in (1, 2):
        write_delta(folder, number, 10 + number)
        until(lambda number=number: follower.scorer.step == 10 + number)
    assert follower.num_deltas == 2


def test_without_a_time_between_looks_there_is_no_thread(folder, follow):
    before = threading.active_count()
    follower = follow(poll_seconds=0)
    follower.start()
    assert threading.active_count() == before
    write_delta(folder, 1, 11)
    time.sleep(0.02)
    assert follower.scorer.step == 10


def test_a_stopped_follower_looks_no_more(folder, follow):
    follower = follow(poll_seconds=0.01)
    follower.start()
    follower.stop()
    write_delta(folder, 1, 11)
    time.sleep(0.05)
    assert follower.scorer.step == 10


def test_a_damaged_delta_is_told_once_and_tried_again(folder, follow, caplog):
    follower = follow(poll_seconds=0)
    write_delta(folder, 1, "damaged")
    for _ in range(3):
        follower.poll()
    assert "00000001.npz cannot be read" in follower.problem
    assert (follower.num_errors, follower.scorer.step) == (3, 10)
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1 and "trying again" in errors[0].getMessage()
    write_delta(folder, 1, 11)
    follower.poll()
    assert (follower.problem, follower.scorer.step, follower.num_errors) == ("", 11, 3)


def test_a_missing_delta_is_told_until_it_is_there(folder, follow):
    write_delta(folder, 1, 11)
    write_delta(folder, 3, 13)
    write_delta(folder, 4, 14)
    follower = follow(poll_seconds=0)
    assert follower.scorer.number == 1 and follower.num_errors == 1
    assert "00000002.npz cannot be read" in follower.problem
    write_delta(folder, 2, 12)
    follower.poll()
    assert (follower.scorer.number, follower.problem) == (4, "")


def test_old_deltas_and_other_files_are_no_gap(folder, follow):
    for number in (1, 2):
        write_delta(folder, number, 10 + number)
    follower = follow(poll_seconds=0)
    for name in ("00000007.part", "notes.npz", "00000009.npz.tmp"):
        (folder / "deltas" / name).write_text("")
    follower.poll()
    assert follower.problem == "" and follower.scorer.number == 2
    delta.file_of(folder, 1).unlink()  # somebody tidied up
    write_delta(folder, 3, 13)
    follower.poll()
    assert (follower.problem, follower.scorer.number) == ("", 3)


def test_what_nobody_thought_of_does_not_end_the_looking(folder, follow, caplog):
    class Surprising(FakeScorer):
        def apply(self, path):
            if path.read_text() == "11":
                raise RuntimeError("out of something")
            super().apply(path)

    follower = follow(poll_seconds=0.01, opener=Surprising)
    write_delta(folder, 1, 11)
    follower.start()
    until(lambda: follower.num_errors > 2)
    assert follower.problem == "RuntimeError: out of something"
    assert sum("Traceback" in (r.exc_text or "") for r in caplog.records) == 1
    write_delta(folder, 1, 12)
    until(lambda: follower.scorer.step == 12)


def test_a_new_bundle_is_taken_with_its_deltas(folder, follow):
    write_delta(folder, 1, 11)
    follower = follow(poll_seconds=0)
    old = follower.scorer
    folder.rename(folder.with_name("old"))
    write_bundle(folder, "second", 20)
    write_delta(folder, 1, 21)
    follower.poll()
    assert (follower.scorer.step, follower.scorer.number) == (21, 1)
    assert follower.scorer.bundle.signature["id"] == "second"
    assert (old.step, follower.num_bundles, follower.num_deltas) == (11, 2, 2)


def test_the_old_bundle_scores_while_the_new_one_opens(folder, follow):
    opening, go_on = threading.Event(), threading.Event()

    class Slow(FakeScorer):
        def __init__(self, path):
            super().__init__(path)
            if self.step == 20:
                opening.set()
                assert go_on.wait(10)

    follower = follow(poll_seconds=0.01, opener=Slow)
    follower.start()
    write_bundle(folder, "second", 20)
    assert opening.wait(10)
    assert follower.scorer.step == 10
    go_on.set()
    until(lambda: follower.scorer.step == 20)


def test_a_new_bundle_is_taken_even_if_one_of_its_deltas_is_damaged(folder, follow):
    follower = follow(poll_seconds=0)
    write_bundle(folder, "second", 20)
    write_delta(folder, 1, 21)
    write_delta(folder, 2, "damaged")
    follower.poll()
    assert follower.scorer.step == 21 and "00000002.npz" in follower.problem


def test_a_bad_bundle_is_refused_and_the_old_one_stays(folder, follow, caplog):
    follower = follow(poll_seconds=0)
    write_bundle(folder, "second", 20, is_bad=True)
    follower.poll()
    follower.poll()
    assert follower.scorer.step == 10 and follower.num_bundles == 1
    assert "a new bundle is refused, the one before goes on" in follower.problem
    assert "does not score its golden candidates" in follower.problem
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    write_bundle(folder, "third", 30)
    until(lambda: follower.poll() or follower.scorer.step == 30)
    assert follower.problem == ""


def test_a_refused_bundle_is_not_opened_all_the_time(folder, follow):
    openings = []

    class Costly(FakeScorer):
        def __init__(self, path):
            openings.append(path)
            if len(openings) > 1:
                time.sleep(0.05)
            super().__init__(path)

    follower = follow(poll_seconds=0, opener=Costly)
    write_bundle(folder, "second", 20, is_bad=True)
    begin = time.monotonic()
    while time.monotonic() < begin + 0.3:
        follower.poll()
    assert len(openings) == 2  # the first bundle, and once the one that is refused
    assert "golden" in follower.problem


def test_a_bundle_that_is_gone_or_unreadable_is_told(folder, follow):
    follower = follow(poll_seconds=0)
    for content in (None, "{", "[]", "null"):
        if content is None:
            (folder / "signature.json").unlink()
        else:
            (folder / "signature.json").write_text(content)
        follower.poll()
        assert "signature.json cannot be read" in follower.problem, content
        assert follower.scorer.step == 10
    write_bundle(folder, "first", 10)
    follower.poll()
    assert (follower.problem, follower.num_errors) == ("", 4)


def test_a_bundle_that_changes_while_it_is_opened_is_opened_again(folder, follow):
    names = iter(["second", "third"])

    class Replaced(FakeScorer):
        def __init__(self, path):
            name = next(names, None)
            super().__init__(path)
            if name:  # its other files would be those of the next one
                write_bundle(path, name, self.step + 10)

    follower = follow(poll_seconds=0, opener=Replaced)
    assert follower.scorer.bundle.signature == {"id": "third", "step": 30}
    assert follower.num_bundles == 1


def test_a_bundle_that_never_rests_is_told(folder):
    number = iter(range(100))

    class Restless(FakeScorer):
        def __init__(self, path):
            super().__init__(path)
            write_bundle(path, f"number {next(number)}", 0)

    with pytest.raises(BundleError, match="replaced 5 times while it was opened"):
        Follower(folder, opener=Restless)


def test_a_first_bundle_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(BundleError, match=r"signature\.json cannot be read"):
        Follower(tmp_path / "none", opener=FakeScorer)
