"""The same folder from a cluster of two nodes."""

import collections
import os
import pathlib
import sys

from made_up import criteo as made_up
import pytest

from data_pipelines import criteo
from data_pipelines.engine import cluster, text
from data_pipelines.engine.parts import Job
from rankax.data.card import DataError


def test_without_ray_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"--cluster=local needs Ray: pip install 'ran"):
        cluster.runner("local")


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_two_nodes_write_the_same_files_as_one_machine(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(text, "PART_BYTES", 20_000)
    made_up.write_published(tmp_path)
    criteo.convert(tmp_path, tmp_path / "here", file="day_0")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    try:
        run = cluster.runner(nodes.address)
        assert len(ray.nodes()) == 2
        folder = tmp_path / "who"
        folder.mkdir()

        def who(job: Job, item: int) -> int:
            place = ray.get_runtime_context().get_node_id()
            (folder / f"{item}-{place}").write_text(str(os.getpid()))
            return item

        job = Job(plan=None, rows=None, scratch=tmp_path)  # pyright: ignore
        assert sorted(run(who, job, range(40))) == list(range(40))
        names = [path.name.split("-")[1] for path in folder.iterdir()]
        assert len(collections.Counter(names)) == 2
        criteo.convert(tmp_path, tmp_path / "a", file="day_0", cluster=nodes.address)
        assert files_of(tmp_path / "a") == files_of(tmp_path / "here")
        text_file = tmp_path / "day_0"
        text_file.write_text(text_file.read_text() + "1\t2\n")
        with pytest.raises(DataError, match="day_0, line 601: 2 fields, expected 40"):
            criteo.convert(
                tmp_path, tmp_path / "b", file="day_0", cluster=nodes.address
            )
    finally:
        ray.shutdown()
        nodes.shutdown()
