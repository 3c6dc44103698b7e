r"""Writes what starts a run elsewhere: on TPU VMs, Kubernetes and Slurm.

python -m tpu.render gke --name=ctr --topology=v5p:4x4x4 --image=IMAGE \
    --config=experiments/quickstart.py --workdir=/shared/ctr --volume=claim:runs
python -m tpu.render slurm --name=ctr --topology=h100:16 --time=24:00:00 \
    --config=experiments/quickstart.py --workdir=runs/ctr --config.data.lanes=16
python -m tpu.render slurm --name=sweep --topology=h100:1 --commands=commands.txt

Options of the configuration are overridden as for rankax.main. The configuration is
loaded and checked against the devices; nothing is started. docs/launch.md tells what is
done with the file of each route.

--commands=FILE, for slurm and gke, makes one task of each line of a file, which holds a
command: a sweep. What is finished ends at once, since the same command on the same
folder does.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import pathlib
import shlex
import sys
from typing import Any

from rankax.config.base import ConfigError, suggest
from tpu import checkout, gke, names, program, slices, slurm, tpu_vm
from tpu.slices import Slice

ROUTES = ("tpu-vm", "gke", "gke-gpu", "slurm")
ARRAY_ROUTES = ("slurm", "gke")


def array(
    commands: Sequence[str],
    *,
    route: str,
    name: str,
    topology: str = "cpu:1",
    at_once: int = 0,
    grace_seconds: int = program.UNKNOWN_GRACE_SECONDS,
    **options: Any,
) -> str:
    """Returns the file that runs a list of commands, each as one task.

    A task that is told to go saves and is started again. Tasks whose runs are finished
    end at once when the file is submitted again.

    Args:
        commands: shell commands without pipes, variables or redirections, such as
            "python -m rankax.main --config=FILE --workdir=FOLDER"; each has a folder
            of its own.
        route: "slurm", a job array, or "gke", an Indexed Job.
        name: of the job.
        topology: of each task, on one machine: "h100:1", "v5e:2x2", "cpu:1".
        at_once: tasks that may run together; 0 = all.
        grace_seconds: from the signal to the end, for a save.
        options: what the route knows of its site: fields of `tpu.slurm.Cluster` or
            `tpu.gke.Cluster`; the latter needs `image`.

    Raises:
        ConfigError: no commands, two of them alike, or values that the route does not
            take.
    """
    if route not in ARRAY_ROUTES:
        raise ConfigError(
            f"a list of commands has no route {route!r}; {suggest(route, ARRAY_ROUTES)}"
        )
    names.check_label(name, "--name")
    words = _split(commands)
    if route == "gke":
        configs = [names.value_of("--config", x) for x in words if "rankax.main" in x]
        _warn(_check_shipped([config for config in configs if config]))
    module = slurm if route == "slurm" else gke
    cluster = _build(module.Cluster, options)
    return module.render_array(
        words,
        name=name,
        slice=_slice(topology, cluster),
        cluster=cluster,
        grace_seconds=grace_seconds,
        at_once=_check_at_once(at_once),
    )


def run(
    route: str,
    *,
    config: str,
    workdir: str,
    name: str,
    topology: str,
    overrides: Sequence[str] = (),
    grace_seconds: int = 0,
    **options: Any,
) -> str:
    """Returns the file that starts one run.

    Args:
        route: "tpu-vm", "gke", "gke-gpu" or "slurm".
        config: FILE.py or FILE.py:arg.
        workdir: the run folder, as the machines will see it.
        name: of the job.
        topology: "v5p:4x4x4", "h100:16".
        overrides: --config.x.y=value.
        grace_seconds: from a signal to the end; 0 = what a save needs.
        options: fields of the route's `Project` or `Cluster`.

    Raises:
        ConfigError: a configuration or values that do not fit the machines.
    """
    if route not in ROUTES:
        raise ConfigError(f"no route {route!r}; {suggest(route, ROUTES)}")
    names.check_label(name, "--name")
    site = _build(_SITES[route], options)
    where = _slice(topology, site)
    _check_route(route, where)
    hosts = count = where.num_hosts
    if isinstance(site, slurm.Cluster):
        count = slurm.num_processes(where)
    own = program.program(
        config,
        workdir=workdir,
        overrides=overrides,
        slice=where,
        num_processes=count,
    )
    if not isinstance(site, slurm.Cluster):  # whose nodes see this checkout
        _warn(_check_shipped([config]))
        _warn(own.warn_of_data(hosts, mount=site.mount))
        if site.spot:
            _warn(own.warn_of_spot(hosts, seconds=_SPOT_SECONDS[route]))
    common = {"name": name, "slice": where}
    common["grace_seconds"] = grace_seconds or own.grace_seconds(hosts)
    if isinstance(site, slurm.Cluster):
        return slurm.render(own, cluster=site, **common)
    if isinstance(site, gke.Cluster):
        return gke.render(own, cluster=site, **common)
    return tpu_vm.render(own, project=site, **common)


_SITES: dict[str, Callable[..., Any]] = {
    "tpu-vm": tpu_vm.Project,
    "gke": gke.Cluster,
    "gke-gpu": gke.Cluster,
    "slurm": slurm.Cluster,
}


_SPOT_SECONDS = {
    "tpu-vm": tpu_vm.SPOT_SECONDS,
    "gke": gke.SPOT_SECONDS,
    "gke-gpu": gke.SPOT_SECONDS,
}


def _slice(topology: str, site: Any) -> Slice:
    is_slurm = isinstance(site, slurm.Cluster)
    return slices.parse(topology, gpus_per_node=site.gpus_per_node if is_slurm else 0)


def _check_shipped(configs: Iterable[str]) -> Iterable[str]:
    """Returns warnings, each once, about files that machines get from HEAD."""
    found: dict[str, None] = {}
    for config in dict.fromkeys(configs):
        checkout.check_there(config)
        found |= dict.fromkeys(checkout.check_shipped(config))
    return found


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _check_route(route: str, where: Slice) -> None:
    fits = {
        "tpu-vm": where.is_tpu,
        "gke": where.is_tpu,
        "gke-gpu": where.is_gpu,
        "slurm": not where.is_tpu,
    }
    if not fits[route]:
        others = [name for name, is_fit in fits.items() if is_fit]
        raise ConfigError(
            f"--topology={where.topology} is not for {route}; use {' or '.join(others)}"
        )


def _build(site: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Builds what a route knows of its site; an unknown option is an error."""
    fields = {field.name: field for field in dataclasses.fields(site)}  # type: ignore
    for option in options:
        if option not in fields:
            raise ConfigError(
                f"no option {option!r} here; {suggest(option, tuple(fields))}"
            )
    lacking = [
        f"--{name}"
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and not options.get(name)
    ]
    if lacking:
        raise ConfigError(f"{' and '.join(lacking)} must be given")
    return site(**options)


def _split(commands: Iterable[str]) -> list[list[str]]:
    """Returns the words of each command."""
    seen: dict[tuple[str, ...], int] = {}
    for number, command in enumerate(commands, 1):
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise ConfigError(f"command {number}: {error}: {command!r}") from error
        if not words or not command.isprintable():
            raise ConfigError(
                f"command {number} must be one line that is not empty, found "
                f"{command!r}"
            )
        if words in seen:
            raise ConfigError(
                f"commands {seen[words]} and {number} are the same, and would write to "
                f"one folder: {command!r}"
            )
        seen[words] = number
    if not seen:
        raise ConfigError("there are no commands; a list needs one at least")
    return [list(words) for words in seen]


def _check_at_once(at_once: int) -> int:
    if at_once < 0:
        raise ConfigError(f"--at_once={at_once} must be 0, for all, or more")
    return at_once


# ---------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = _parser()
    flags, overrides = parser.parse_known_args(arguments)
    given = {key: x for key, x in vars(flags).items() if x is not None}
    route, out, path = (given.pop(key, "") for key in ("route", "out", "commands"))
    try:
        if path:
            text = _render_list(path, route, given, overrides)
        else:
            for name in ("config", "workdir"):
                if name not in given:
                    raise ConfigError(f"--{name} must be given")
            if "at_once" in given:
                raise ConfigError("--at_once is for --commands")
            text = run(route, overrides=overrides, **given)
        _write(text, out)
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")


def _write(text: str, out: str) -> None:
    if not out:
        sys.stdout.write(text)
        return
    path = pathlib.Path(out)
    if not path.parent.is_dir():
        raise ConfigError(
            f"--out={out}: there is no folder {path.parent}; make it, or name a file "
            "in one that exists"
        )
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be written: {error.strerror}") from error


def _render_list(
    path: str, route: str, given: dict[str, Any], overrides: Sequence[str]
) -> str:
    for name in ("config", "workdir"):
        if name in given:
            raise ConfigError(f"--{name} and --commands: give one of them")
    if overrides:
        raise ConfigError(f"unknown argument {overrides[0]!r}")
    try:
        lines = (
            sys.stdin.read() if path == "-" else pathlib.Path(path).read_text()
        ).splitlines()
    except OSError as error:
        raise ConfigError(f"--commands={path}: {error}") from error
    commands = [line for line in lines if line.strip() and not line.startswith("#")]
    return array(commands, route=route, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tpu.render",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    routes = parser.add_subparsers(dest="route", required=True, metavar="ROUTE")
    abouts = {
        "tpu-vm": "a shell script around gcloud, for TPU VMs",
        "gke": "a JobSet for TPU slices on Google Kubernetes Engine",
        "gke-gpu": "a JobSet for GPUs on Google Kubernetes Engine",
        "slurm": "a batch script for GPUs or CPUs under Slurm",
    }
    for route, about in abouts.items():
        own = routes.add_parser(
            route,
            help=about,
            description=about,
            epilog="--config.x.y=VALUE overrides an option of the configuration, as "
            "for rankax.main; for example --config.train.batch_size=8192",
            allow_abbrev=False,
        )
        _add_common(own, route)
        _add_site(own, _SITES[route])
    return parser


# Route -> what --topology may be.
_EXAMPLES = {
    "tpu-vm": "v5e:4x4, v5p:4x4x4, v6e:16x16",
    "gke": "v5e:4x4, v5p:4x4x4, tpu7x:2x2x1; with --commands also h100:1, cpu:1",
    "gke-gpu": "l4:1, a100-80gb:8, h100:16",
    "slurm": "h100:16, a100:8, cpu:2",
}


def _add_common(parser: argparse.ArgumentParser, route: str) -> None:
    parser.add_argument("--config", help="experiment file, as of rankax.main")
    parser.add_argument("--workdir", help="run folder, as the machines see it")
    parser.add_argument("--name", required=True, help="of the job")
    parser.add_argument(
        "--topology", required=True, help=f"machines, such as {_EXAMPLES[route]}"
    )
    parser.add_argument(
        "--grace_seconds", type=int, help="for a save; default: by its size"
    )
    parser.add_argument("--out", help="file to write; default: print it")
    if route in ARRAY_ROUTES:
        parser.add_argument(
            "--commands",
            help="file of commands, a task for each line; - = stdin",
        )
        parser.add_argument(
            "--at_once",
            type=int,
            help="with --commands: tasks that run together (default: all)",
        )


def _add_site(parser: argparse.ArgumentParser, site: Callable[..., Any]) -> None:
    """Adds the fields of a route's site, with their explanations."""
    texts = _attributes(site.__doc__ or "")
    for field in dataclasses.fields(site):  # type: ignore[arg-type]
        default = field.default
        is_needed = default is dataclasses.MISSING
        text = texts[field.name].rstrip(".") + (" (needed)" if is_needed else "")
        if default and not is_needed:
            text += f" (default: {default})"
        if isinstance(default, bool):
            parser.add_argument(
                f"--{field.name}", action="store_true", default=None, help=text
            )
        else:
            kind = int if isinstance(default, int) else str
            parser.add_argument(f"--{field.name}", type=kind, help=text)


def _attributes(docstring: str) -> dict[str, str]:
    """Returns name -> text of the attributes that a docstring explains."""
    texts: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Attributes:")[2].splitlines():
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if indent == 8 and ": " in stripped:
            name, _, texts[name] = stripped.partition(": ")
        elif stripped and name:
            texts[name] += " " + stripped
    return {key: text.replace("%", "%%") for key, text in texts.items()}


if __name__ == "__main__":
    main()
