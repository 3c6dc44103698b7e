"""Manifests for Kubernetes: held to the schemas, and what is in them is run."""

import copy
import os
import subprocess

from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
import kubernetes_validate
import pytest
import yaml

from rankax.config.base import ConfigError
from tpu import program, render

QUICKSTART = "experiments/quickstart.py:lr"
KUBERNETES = "1.33"


def one_run(route="gke", topology="v5p:4x4x4", **options):
    """The manifest of a run, read back."""
    given = {"image": "image", "workdir": "/shared/ctr", "volume": "claim:runs"}
    text = render.run(
        route, config=QUICKSTART, name="ctr", topology=topology, **given | options
    )
    return yaml.safe_load(text)


def check_job(spec):
    """Holds the spec of a Job to the schema of Kubernetes; unknown fields fail."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    kubernetes_validate.validate(job | {"spec": spec}, KUBERNETES, strict=True)


def check_jobset(manifest):
    """Holds a JobSet to v1alpha2, as the classes made from its schema know it."""
    assert JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
    for job in manifest["spec"]["replicatedJobs"]:
        check_job(job["template"]["spec"])


def pod_of(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def container_of(manifest):
    (container,) = pod_of(manifest)["containers"]
    return container


@pytest.mark.parametrize(
    ("route", "topology"),
    [
        ("gke", "v5e:1x1"),
        ("gke", "v5p:4x4x4"),
        ("gke", "v6e:4x4"),
        ("gke", "tpu7x:2x2x1"),
        ("gke-gpu", "h100:16"),
        ("gke-gpu", "l4:1"),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spot": True, "service_account": "trainer", "namespace": "ranking"},
        {"volume": "bucket:runs", "mount_path": "/runs", "workdir": "/runs/ctr"},
    ],
    ids=["plain", "spot", "bucket"],
)
def test_a_run_is_a_jobset_that_the_schemas_take(route, topology, options):
    check_jobset(one_run(route, topology, **options))


def test_the_schemas_refuse_what_is_not_in_them():
    manifest = one_run()
    for path in (("spec",), ("spec", "failurePolicy"), ("spec", "network")):
        wrong = copy.deepcopy(manifest)
        part = wrong
        for key in path:
            part = part[key]
        part["maxRestart"] = 3
        with pytest.raises(AssertionError):
            check_jobset(wrong)
    wrong = copy.deepcopy(manifest)
    container_of(wrong)["program"] = ["python"]
    with pytest.raises(kubernetes_validate.ValidationError):
        check_job(wrong["spec"]["replicatedJobs"][0]["template"]["spec"])


def test_a_tpu_slice_gets_a_pod_for_each_machine_with_all_its_chips():
    manifest = one_run(topology="v5p:4x4x4")
    (job,) = manifest["spec"]["replicatedJobs"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (1, 16)
    assert job["template"]["spec"]["completions"] == 16
    assert pod_of(manifest)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    container = container_of(manifest)
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == [
        "python",
        "-m",
        "rankax.main",
        f"--config={QUICKSTART}",
        "--workdir=/shared/ctr",
        "--coordinator=auto",
        "--start_timeout_seconds=1200",
    ]


def test_gpus_of_several_machines_know_the_first_by_its_name_in_the_jobset():
    manifest = one_run("gke-gpu", "h100:16")
    (job,) = manifest["spec"]["replicatedJobs"]
    # <jobSet>-<replicatedJob>-<job index>-<pod index>.<subdomain>, says JobSet.
    host = f"{manifest['metadata']['name']}-{job['name']}-0-0"
    container = container_of(manifest)
    assert container["command"][-4:] == [
        "--start_timeout_seconds=1200",
        f"--coordinator={host}.{manifest['metadata']['name']}:8476",
        "--num_processes=2",
        "--process_index=$(PROCESS_INDEX)",
    ]
    assert manifest["spec"]["network"]["enableDNSHostnames"]
    (index,) = [x for x in container["env"] if x["name"] == "PROCESS_INDEX"]
    path = index["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert job["template"]["spec"]["completionMode"] == "Indexed"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}


@pytest.mark.parametrize(
    ("route", "topology", "cpu", "memory"),
    [
        ("gke", "v5p:4x4x4", "32", "128Gi"),
        ("gke", "v5e:1x1", "8", "32Gi"),
        ("gke-gpu", "h100:16", "64", "256Gi"),
    ],
)
def test_a_pod_asks_for_cpus_and_memory_by_its_chips_or_as_told(
    route, topology, cpu, memory
):
    manifest = one_run(route, topology)
    requests = container_of(manifest)["resources"]["requests"]
    assert requests == {"cpu": cpu, "memory": memory}
    told = one_run(route, topology, cpu="500m", memory="9Gi")
    check_jobset(told)
    requests = container_of(told)["resources"]["requests"]
    assert requests == {"cpu": "500m", "memory": "9Gi"}


def test_what_a_pod_asks_for_is_there_on_the_smallest_machine():
    # What pods can have of a ct5lp-hightpu-1t is 23.3 cores and 42.7 GiB. A
    # g2-standard-12, with an L4, has as much memory and 12 cores.
    for route, topology in (("gke", "v5e:1x1"), ("gke-gpu", "l4:1")):
        requests = container_of(one_run(route, topology))["resources"]["requests"]
        assert int(requests["cpu"]) <= 11
        assert int(requests["memory"].removesuffix("Gi")) <= 42


def test_memory_that_gpus_share_has_a_limit_within_what_the_pod_asks_for():
    manifest = one_run("gke-gpu", "h100:16")
    (memory,) = [x for x in pod_of(manifest)["volumes"] if x["name"] == "memory"]
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    mount = {"name": "memory", "mountPath": "/dev/shm"}
    assert mount in container_of(manifest)["volumeMounts"]


def test_one_machine_needs_no_coordinator_and_may_save_to_a_store():
    for route, topology in (("gke", "v5e:2x4"), ("gke-gpu", "h100:8")):
        manifest = one_run(route, topology, workdir="gs://bucket/ctr", volume="")
        command = container_of(manifest)["command"]
        assert not [word for word in command if "coordinator" in word]
        assert command[-1] == "--workdir=gs://bucket/ctr"


def test_a_stopped_pod_restarts_all_uncounted_after_the_last_has_ended():
    manifest = one_run(max_restarts=7)
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["restartStrategy"] == "BlockingRecreate"
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["backoffLimit"] == 0
    codes, gone = spec["podFailurePolicy"]["rules"]
    assert (codes["action"], codes["onExitCodes"]["values"]) == ("FailJob", [128 + 15])
    assert codes["onExitCodes"]["containerName"] == container_of(manifest)["name"]
    assert (gone["action"], gone["onPodConditions"][0]["type"]) == (
        "FailJob",
        "DisruptionTarget",
    )
    assert pod_of(manifest)["restartPolicy"] == "Never"


def test_time_for_a_save_grows_with_the_checkpoint_and_shrinks_with_the_machines():
    grace = pod_of(one_run())["terminationGracePeriodSeconds"]
    assert grace == program.MIN_GRACE_SECONDS
    own = program.Program(words=(), workdir="", checkpoint_bytes=400_000_000_000)
    # 400 GB at 0.2 GB/s are 2,000 s for one machine.
    assert own.grace_seconds(1) == 2_000 + 60
    assert own.grace_seconds(16) == 125 + 60
    unknown = program.Program(words=(), workdir="")
    assert unknown.grace_seconds(16) == 600
    given = pod_of(one_run(grace_seconds=77))
    assert given["terminationGracePeriodSeconds"] == 77


def test_spot_is_asked_for_and_tolerated():
    pod = pod_of(one_run(spot=True))
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    (toleration,) = pod["tolerations"]
    assert toleration["key"] == "cloud.google.com/gke-spot"
    assert "tolerations" not in pod_of(one_run())


def test_a_word_that_looks_like_a_variable_of_kubernetes_stays_a_word():
    override = "--config.eval.metric=$(HOME)"
    own = program.Program(words=("python", override), workdir="/shared/ctr")
    text = render.gke.render(
        own,
        name="ctr",
        slice=render.slices.parse("v5e:1x1"),
        cluster=render.gke.Cluster(image="image", volume="claim:runs"),
        grace_seconds=100,
    )
    command = container_of(yaml.safe_load(text))["command"]
    assert command == ["python", "--config.eval.metric=$$(HOME)"]


@pytest.mark.parametrize(
    ("route", "options", "message"),
    [
        ("gke", {"workdir": "gs://b/ctr"}, "16 processes cannot save to a store"),
        ("gke", {"workdir": "runs/ctr"}, "is inside the container, and lost with it"),
        ("gke", {"workdir": "/sharedx/ctr"}, "is inside the container"),
        ("gke", {"volume": ""}, "is inside the container"),
        ("gke", {"volume": "runs"}, "must be claim:NAME"),
        ("gke", {"volume": "claim:"}, "must be claim:NAME"),
        ("gke", {"mount_path": "shared"}, "must be an absolute path"),
        ("gke", {"image": ""}, "--image must be given"),
        ("gke", {"namespace": "My_Team"}, "for example 'my-team'"),
        ("gke", {"max_restarts": -1}, "must be 0 or more"),
        ("gke", {"cpu": "many"}, "--cpu=many must be like 12"),
        ("gke", {"memory": "64"}, "--memory=64 must be like 64Gi"),
        ("gke", {"machine": "x"}, "no option 'machine' here"),
        ("gke", {"imge": "x"}, "did you mean 'image'?"),
        ("gke", {"topology": "h100:8"}, "is not for gke; use gke-gpu or slurm"),
        ("gke-gpu", {"topology": "v5e:2x2"}, "is not for gke-gpu; use tpu-vm or gke"),
        ("gke", {"topology": "v5p:4x4x12"}, "do not divide tables.num_shards"),
        ("gke", {"topology": "v6e:16x16"}, "data.lanes = 16 cannot be split over the"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_advice(route, options, message):
    with pytest.raises(ConfigError) as told:
        one_run(route, **options)
    assert message in str(told.value)


# ---------------------------------------------------------------- lists of runs

MAIN = f"python -m rankax.main --config={QUICKSTART}"
COMMANDS = [
    f"{MAIN} --workdir=gs://b/0",
    f"{MAIN} '--config.eval.metric=two words $(HOME)'",
    f"{MAIN} --workdir=gs://b/2 --config.data.path=it\\'s",
]


def a_list(commands=COMMANDS, **options):
    given = {"name": "sweep", "topology": "v5e:2x2", "image": "image"} | options
    return yaml.safe_load(render.array(commands, route="gke", **given))


def test_a_list_is_an_indexed_job_that_the_schema_takes():
    manifest = a_list(at_once=2, spot=True, volume="claim:runs")
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    spec = manifest["spec"]
    assert (spec["completions"], spec["parallelism"]) == (3, 2)
    assert spec["completionMode"] == "Indexed"
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == [
        "Ignore",
        "Ignore",
    ]
    on_cpus = a_list(topology="cpu:1")
    kubernetes_validate.validate(on_cpus, KUBERNETES, strict=True)
    (container,) = on_cpus["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"cpu": "1", "memory": "4Gi"}}
    assert a_list()["spec"]["parallelism"] == 3
    assert a_list(at_once=5)["spec"]["parallelism"] == 3


def test_each_index_starts_its_command_as_the_pods_first_process(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$$" "$@"\n')
    fake.chmod(0o755)
    (container,) = a_list()["spec"]["template"]["spec"]["containers"]
    bash, option, script = container["command"]
    assert (bash, option) == ("bash", "-c")
    expected = [
        ["--workdir=gs://b/0"],
        ["--config.eval.metric=two words $(HOME)"],
        ["--workdir=gs://b/2", "--config.data.path=it's"],
    ]
    for index, words in enumerate(expected):
        process = subprocess.Popen(
            [bash, option, script.replace("$$(", "$(")],  # as Kubernetes hands it over
            env=os.environ
            | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
            | {"JOB_COMPLETION_INDEX": str(index)},
            stdout=subprocess.PIPE,
            text=True,
        )
        said, _ = process.communicate()
        # The process is bash's own, so that it gets the SIGTERM of the pod.
        start = [str(process.pid), "-m", "rankax.main", f"--config={QUICKSTART}"]
        assert said.splitlines() == start + words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"commands": []}, "there are no commands"),
        ({"commands": ["a", "b", "a"]}, "commands 1 and 3 are the same"),
        ({"commands": ["a 'b"]}, "command 1: No closing quotation"),
        ({"commands": ["a", " "]}, "command 2 must be one line that is not empty"),
        ({"commands": ["a\nb"]}, "command 1 must be one line"),
        ({"commands": [f"a {i} {'x' * 900}" for i in range(300)]}, "render parts"),
        (
            {"commands": [f"{MAIN} --workdir=gs://b/0", f"{MAIN} --workdir=runs/lr"]},
            "command 2: --workdir=runs/lr is inside the container, and lost with it",
        ),
        (
            {"commands": [f"{MAIN} --workdir /shared/lr"]},
            "command 1: --workdir=/shared/lr is inside the container",
        ),
        (
            {"commands": ["python -m rankax.main --config=experiments/frap/x.py"]},
            "no such file experiments/frap/x.py",
        ),
        ({"topology": "v5p:4x4x4"}, "each run of a list is one"),
        ({"topology": "cpu:2"}, "each run of a list is one"),
        ({"at_once": -1}, "--at_once=-1 must be 0, for all, or more"),
        ({"name": "x" * 41}, "have 40 characters at most"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError) as told:
        a_list(**options)
    assert message in str(told.value)


def test_a_list_may_write_to_a_volume_or_a_store():
    commands = [f"{MAIN} --workdir=/shared/lr", f"{MAIN} --workdir gs://b/fm"]
    manifest = a_list(commands, volume="claim:runs")
    assert manifest["spec"]["completions"] == 2
