import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.layers.semantic_groups import SemanticGroups, flat_inputs

INPUTS = flat_inputs(
    ("user", "item", "tags/0", "tags/1"), 2, ("numeric/0", "numeric/1")
)


def test_inputs_are_tokens_and_then_numbers():
    assert INPUTS == {
        "user": 2, "item": 2, "tags/0": 2, "tags/1": 2, "numeric/0": 1, "numeric/1": 1,
    }  # fmt: skip


def test_a_field_stands_for_all_of_its_parts():
    groups = SemanticGroups.named(
        INPUTS, (("tags", "numeric/1"), ("item",), ("numeric/0", "user"))
    )
    assert groups.groups == ((2, 3, 5), (1,), (4, 0))
    assert groups.dims == (5, 2, 3)
    pieces = groups.split(jnp.arange(10)[None])
    assert [p[0].tolist() for p in pieces] == [[4, 5, 6, 7, 9], [2, 3], [8, 0, 1]]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            (("user", "itm"), ("tags", "numeric")),
            "'itm', which is no input; did you mean 'item'",
        ),
        ((("user", "item"), ("tags",)), r"missing: \['numeric/0', 'numeric/1'\]"),
        (
            (("user", "item", "tags"), ("numeric", "tags/1")),
            r"more than once: \['tags/1'\]",
        ),
        ((("user", "item"), (), ("tags", "numeric")), "has an empty group"),
    ],
)
def test_groups_that_do_not_hold_every_input_once_are_an_error(groups, message):
    with pytest.raises(ConfigError, match=message):
        SemanticGroups.named(INPUTS, groups)


@pytest.mark.parametrize(
    ("widths", "num_groups", "groups"),
    [
        ([4] * 6, 3, [[0, 1], [2, 3], [4, 5]]),
        ([4] * 7, 3, [[0, 1], [2, 3, 4], [5, 6]]),
        ([4] * 3, 3, [[0], [1], [2]]),
        # Numbers are narrow: many of them make a group.
        ([8, 8] + [1] * 8, 3, [[0], [1], list(range(2, 10))]),
        # A wide input leaves the groups after it the inputs that they need.
        ([1, 1, 20, 1], 4, [[0], [1], [2], [3]]),
        ([20, 1, 1, 1], 3, [[0], [1], [2, 3]]),
    ],
)
def test_automatic_groups_are_neighbours_of_nearly_equal_width(
    widths, num_groups, groups
):
    inputs = {str(i): width for i, width in enumerate(widths)}
    found = SemanticGroups.automatic(inputs, num_groups)
    assert [list(group) for group in found.groups] == groups


def test_automatic_groups_hold_every_input_once_and_are_never_empty():
    rng = np.random.default_rng(0)
    for num_inputs in range(1, 30):
        widths = rng.choice([1, 4, 64], num_inputs)
        inputs = {str(i): int(width) for i, width in enumerate(widths)}
        for num_groups in range(1, num_inputs + 1):
            found = SemanticGroups.automatic(inputs, num_groups).groups
            assert len(found) == num_groups and all(found)
            assert [i for group in found for i in group] == list(range(num_inputs))
