"""Parts of a conversion on the nodes of a Ray cluster, by Ray Data (extra `ray`).

Every node has this checkout at the same path, and sees --raw and --out under the same
names: a shared file system. A task takes one core and works on one part.
"""

from collections.abc import Callable, Iterable, Iterator
import logging
import os
import sys
from typing import Any

from data_pipelines.engine.parts import Job
from rankax.data.card import DataError

HERE = "local"


def runner(address: str) -> Callable[..., Iterator[int]]:
    """Returns what runs a function of `data_pipelines.engine.parts` over items.

    Args:
        address: of the cluster; "local" starts one on this machine.

    Raises:
        DataError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DataError(
            f"--cluster={address} needs Ray: pip install 'rankax[ray]'"
        ) from error
    if not ray.is_initialized():
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))}
        try:
            ray.init(
                address=None if address == HERE else address,
                runtime_env={"env_vars": paths},
                include_dashboard=False if address == HERE else None,
                log_to_driver=False,
                configure_logging=False,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise DataError(
                f"--cluster={address}: {error}; give the address of a running cluster "
                "(host:port, or ray://host:port), or local"
            ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # `conversion` has its own
    logging.getLogger("ray.data").setLevel(logging.WARNING)

    def run(
        function: Callable[[Job, Any], int], job: Job, items: Iterable[Any]
    ) -> Iterator[int]:
        todo = list(items)
        if not todo:
            return
        shared = ray.put((job, todo))  # once a node, however many parts there are

        def work(row: dict[str, Any]) -> dict[str, Any]:
            job, todo = ray.get(shared)
            try:
                return {"part": function(job, todo[row["id"]]), "error": ""}
            except DataError as error:  # Ray would bury it in what it says itself
                return {"part": -1, "error": str(error)}

        data = ray.data.range(len(todo), override_num_blocks=len(todo))
        for row in data.map(work, num_cpus=1).iter_rows():
            if row["error"]:
                raise DataError(row["error"])
            yield row["part"]

    return run
