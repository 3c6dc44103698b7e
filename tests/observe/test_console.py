import io

import pytest

from rankax.observe import console
from rankax.observe.console import Console


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    time = {"seconds": 0.0}
    monkeypatch.setattr(console.time, "monotonic", lambda: time["seconds"])
    return time


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_log_gets_first_last_and_a_line_now_and_then(now):
    stream = io.StringIO()
    with Console(stream=stream, seconds_between_lines=10) as out:
        train = out.track("train", total=100)
        for step in range(1, 101):
            now["seconds"] = step * 0.5
            train.update(step, loss=1 / step)
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [
        f"{step}/100" for step in (1, 21, 41, 61, 81, 100)
    ]


def test_line_says_all_that_a_person_watches(now):
    stream = io.StringIO()
    train = Console(stream=stream).track("train", total=12_000, start=400)
    train.update(500, loss=0.5)
    now["seconds"] = 61.0
    train.note("valid ctr/auc 0.7812")
    train.update(1_100, loss=0.41236, examples_per_second=52_111.4, input_wait=0.0131)
    # 600 steps took 61 s, so 10,900 more take 18.5 min.
    assert stream.getvalue().splitlines()[-1] == (
        "train  1,100/12,000  loss 0.4124  52,111 examples/s  input wait 1.3%  "
        "ETA 18:28  valid ctr/auc 0.7812"
    )


def test_short_evaluation_says_nothing_in_a_log(now):
    stream = io.StringIO()
    out = Console(stream=stream, seconds_between_lines=10)
    valid = out.track("valid", total=30)
    for step in range(1, 31):
        now["seconds"] = step * 0.3
        valid.update(step)
    assert stream.getvalue() == ""
    now["seconds"] = 11.0
    valid.update(30)
    assert stream.getvalue() == "valid  30/30\n"


def test_terminal_shows_a_bar_and_keeps_messages():
    stream = Terminal()
    with Console(stream=stream) as out:
        train = out.track("train", total=10)
        train.update(5, loss=0.25)
        valid = out.track("valid", total=2)
        valid.update(1)
        valid.close()
        out.message("valid  step 5  ctr/auc 0.7812 [best]")
        train.update(10, loss=0.2)
    text = stream.getvalue()
    assert "━" in text and "10/10  loss 0.2000" in text
    assert "valid  step 5  ctr/auc 0.7812 [best]" in text


def test_quiet_process_prints_nothing():
    stream = Terminal()
    with Console(stream=stream, quiet=True) as out:
        out.track("train", total=1).update(1, loss=0.1)
        out.message("hello")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3_725, "1:02:05")]
)
def test_clock(seconds, text):
    assert console.clock(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (999, "999"),
        (1234, "1.23 k"),
        (999_499, "999 k"),
        (999_600, "1 M"),
        (2.5e9, "2.5 G"),
        (999_700_000_000, "1 T"),
        (2e15, "2 P"),
    ],
)
def test_amount(number, text):
    assert console.amount(number) == text
