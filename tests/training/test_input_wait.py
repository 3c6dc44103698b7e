"""What counts as waiting for input."""

import types

from rankax.training.progress import Stretch


def step(*, is_ready):
    loss = types.SimpleNamespace(
        is_ready=lambda: is_ready, block_until_ready=lambda: None
    )
    return {"loss": loss}


def test_a_wait_counts_only_if_no_step_was_running_at_its_end():
    window = Stretch()
    window.add(step(is_ready=True), {}, start={})  # ends the compilation; time starts
    window.waited(1.0)
    assert window.wait_seconds == 1
    window.add(step(is_ready=False), {}, start={})
    window.waited(2.0)
    assert window.wait_seconds == 1
    window.add(step(is_ready=True), {}, start={})
    window.waited(4.0)
    assert window.wait_seconds == 5
