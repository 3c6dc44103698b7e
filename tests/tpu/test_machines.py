"""Topologies: what the tables of Google Cloud's pages say, and what is refused."""

import pathlib
import re

import pytest

from rankax.config.base import ConfigError
from rankax.observe import peaks
from rankax.parallel import topology as topologies
from tpu import gke, names, slices, tpu_vm

# topology -> chips, machines, devices, machine type, node label, TPU VM: as the pages
# named in slices.py list them.
PUBLISHED = {
    "v5e:1x1": (1, 1, 1, "ct5lp-hightpu-1t", "tpu-v5-lite-podslice", "v5litepod-1"),
    "v5e:2x4": (8, 1, 8, "ct5lp-hightpu-8t", "tpu-v5-lite-podslice", "v5litepod-8"),
    "v5e:4x4": (16, 4, 16, "ct5lp-hightpu-4t", "tpu-v5-lite-podslice", "v5litepod-16"),
    "v6e:2x2": (4, 1, 4, "ct6e-standard-4t", "tpu-v6e-slice", "v6e-4"),
    "v6e:16x16": (256, 64, 256, "ct6e-standard-4t", "tpu-v6e-slice", "v6e-256"),
    "v5p:2x2x1": (4, 1, 4, "ct5p-hightpu-4t", "tpu-v5p-slice", "v5p-8"),
    "v5p:4x4x4": (64, 16, 64, "ct5p-hightpu-4t", "tpu-v5p-slice", "v5p-128"),
    "v5p:8x8x12": (768, 192, 768, "ct5p-hightpu-4t", "tpu-v5p-slice", "v5p-1536"),
    "tpu7x:2x2x1": (4, 1, 8, "tpu7x-standard-4t", "tpu7x", ""),
    "l4:2": (2, 1, 2, "g2-standard-24", "nvidia-l4", ""),
    "a100:4": (4, 1, 4, "a2-highgpu-4g", "nvidia-tesla-a100", ""),
    "a100-80gb:16": (16, 2, 16, "a2-ultragpu-8g", "nvidia-a100-80gb", ""),
    "h100:8": (8, 1, 8, "a3-highgpu-8g", "nvidia-h100-80gb", ""),
    "h100:32": (32, 4, 32, "a3-highgpu-8g", "nvidia-h100-80gb", ""),
    "h200:8": (8, 1, 8, "a3-ultragpu-8g", "nvidia-h200-141gb", ""),
    "b200:16": (16, 2, 16, "a4-highgpu-8g", "nvidia-b200", ""),
    "cpu:2": (2, 1, 2, "", None, ""),
}


@pytest.mark.parametrize("topology", PUBLISHED)
def test_a_topology_has_the_machines_that_google_cloud_lists(topology):
    found = slices.parse(topology)
    label = next(iter(found.labels.values()), None)
    assert (
        found.num_chips,
        found.num_hosts,
        found.num_devices,
        found.machine_type,
        label,
        found.tpu_vm,
    ) == PUBLISHED[topology]
    assert found.chips_per_host * found.num_hosts == found.num_chips
    assert found.is_tpu == ("x" in topology.partition(":")[2])
    assert found.is_gpu == (topology[:2] in ("l4", "a1", "h1", "h2", "b2"))


@pytest.mark.parametrize("topology", PUBLISHED)
def test_a_plan_means_the_machines_that_a_launch_rents(topology):
    found, where = slices.parse(topology), topologies.parse(topology)
    assert (found.num_chips, found.num_devices) == (where.num_chips, where.num_devices)
    known = peaks.peaks(where.device_kind)
    assert (known is None) == (found.kind == "cpu")
    label = next(iter(found.labels.values()), "")
    # Google Cloud's machines with the older A100 have 40 GB.
    gigabytes = re.search(r"(\d+)gb", label.replace("tesla-a100", "40gb"))
    if known and gigabytes:
        assert known.memory_bytes == float(gigabytes[1]) * 1e9


def test_shape_of_a_slice_is_a_label_of_its_nodes():
    labels = slices.parse("v6e:4x8").labels
    assert labels["cloud.google.com/gke-tpu-topology"] == "4x8"


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5q:2x2", "did you mean 'v5p'?"),
        ("v5e", "needs a size, such as v5e:4x4, v5e:4x8, v5e:8x8; python -m rankax"),
        ("v5p", "--mode=plan --plan.topology=v5p finds the smallest that fits"),
        ("h200", "needs a size, such as h200:8, h200:16, h200:32; python -m rankax"),
        ("cpu", "needs a size, such as cpu:8"),
        ("v5e:3x3", "no such slice of v5e; known: 1x1, 2x2"),
        ("v5p:4x4", "or AxBxC with A <= B <= C, all multiples of 4, up to 6144 chips"),
        ("v5p:4x6x4", "no such slice"),
        ("v5p:8x4x4", "no such slice"),
        ("v5p:16x16x28", "no such slice"),
        ("v5p:0x4x4", "no such slice"),
        ("h100:", "must be h100:NUMBER"),
        ("h100:0", "must be h100:NUMBER"),
        ("h100:12", "use a multiple of 8"),
        ("h200:4", "use a multiple of 8"),
        ("cpu:two", "must be cpu:NUMBER"),
        ("", "unknown accelerator ''"),
    ],
)
def test_what_is_no_topology_is_told_what_there_is(topology, message):
    with pytest.raises(ConfigError) as told:
        slices.parse(topology)
    assert message in str(told.value)
    assert f"topology {topology!r}" in str(told.value)


def test_a_site_may_have_nodes_of_its_own():
    with pytest.raises(ConfigError, match="--gpus_per_node"):
        slices.parse("h100:12")
    own = slices.parse("h100:12", gpus_per_node=4)
    assert (own.num_hosts, own.chips_per_host, own.machine_type) == (3, 4, "")
    assert slices.parse("h100:8", gpus_per_node=16).num_hosts == 1


@pytest.mark.parametrize("kind", topologies.KINDS)
def test_sizes_that_are_proposed_can_be_had(kind):
    with pytest.raises(ConfigError) as told:
        slices.parse(kind)
    proposed = re.findall(rf"{kind}:[\dx]+", str(told.value))
    assert len(proposed) == 3
    assert {slices.parse(topology).kind for topology in proposed} == {kind}


@pytest.mark.parametrize(
    ("path", "folder", "is_under"),
    [
        ("/shared/ctr", "/shared", True),
        ("/shared/ctr", "/shared/", True),
        ("/shared/../ctr", "/shared", False),
        ("/sharedx/ctr", "/shared", False),
        ("/shared", "/shared", False),
        ("/shared/ctr", "", False),
        ("shared/ctr", "shared", False),
    ],
)
def test_a_path_is_under_a_folder_by_its_parts(path, folder, is_under):
    assert names.is_under(path, folder) == is_under


def test_an_option_of_a_command_is_its_last():
    words = ["--workdir=a", "--workdirs=b", "--workdir", "c d"]
    assert names.value_of("--workdir", words) == "c d"
    assert names.value_of("--workdir", words[:2]) == "a"
    assert names.value_of("--config", words) == ""


@pytest.mark.parametrize(
    ("name", "proposed"),
    [
        ("CTR_v2", "'ctr-v2'"),
        ("1st", "'st'"),
        ("a-", "'a'"),
        ("", "'run'"),
        ("x" * 41, repr("x" * 40)),
        ("a\n", "'a'"),
    ],
)
def test_a_name_that_is_no_label_is_refused_with_one_that_is(name, proposed):
    with pytest.raises(ConfigError, match="RFC 1123") as told:
        names.check_label(name, "--name", max_length=40)
    assert str(told.value).endswith(f"for example {proposed}")
    assert names.check_label(proposed.strip("'"), "--name", max_length=40)


@pytest.mark.parametrize("value", ["a b", "$HOME/x", "a;b", "`id`", "a'b", "", "a\nb"])
def test_a_value_that_a_shell_would_read_is_refused(value):
    with pytest.raises(ConfigError, match="characters that shells read"):
        names.check_plain(value, "--workdir")


def test_the_page_the_image_and_tpu_vms_agree_on_python():
    root = pathlib.Path(__file__).parents[2]
    image = (root / "tpu/Dockerfile").read_text()
    version = tpu_vm.Project(project="p", zone="us-east5-a").python
    assert f"FROM python:{version}-" in image
    page = (root / "docs/launch.md").read_text()
    assert f"TPU VMs install Python {version} (`--python`)" in page


def test_the_page_says_what_a_pod_asks_for():
    page = (pathlib.Path(__file__).parents[2] / "docs/launch.md").read_text()
    each = f"{gke.CPUS_PER_CHIP} vCPUs and {gke.GIB_PER_CHIP} GiB for\neach chip"
    assert each in page
