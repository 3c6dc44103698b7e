"""Command lines of `rankax.main`, as the drivers of runs make them."""

import pathlib

from absl import flags
from ml_collections import config_flags


def parsed(arguments):
    """Workdir and configuration as `rankax.main` gets them from a command line."""
    values = flags.FlagValues()
    argv = ["main", *arguments[arguments.index("rankax.main") + 1 :]]
    config = config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=argv
    )
    workdir = flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(argv)
    assert workdir.value is not None
    return pathlib.Path(workdir.value), config.value
