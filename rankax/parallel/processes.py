"""Several processes that train as one: how they start, agree, and end together.

JAX connects the processes and carries what they compute. What is added here:

- `start` says which process is waited for instead of aborting without a word;
- `broadcast`, `gather` and `Votes` let the hosts act alike, though only one of them
  may have seen a signal, a file or a clock;
- a `Lifeline` between the processes tells the others within a second that one of them
  has ended, and why. JAX alone notices after `HEARTBEAT_SECONDS`, which is what remains
  for a machine that vanishes without closing its connections.
"""

from collections import deque
from collections.abc import Mapping, Sequence
import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from rankax.config.base import ConfigError

HEARTBEAT_SECONDS = 60
_CONNECT_SECONDS = 20
_HELLO_SECONDS = 2  # from a connection to its first words, which come at once
_GOODBYE = "goodbye"


def start(
    coordinator: str,
    *,
    num_processes: int | None = None,
    process_index: int | None = None,
    timeout_seconds: int = 300,
) -> "Lifeline":
    """Joins this process to the others; comes before any use of a device.

    Args:
        coordinator: "host:port" of process 0; "auto" where JAX finds all of this out
            itself: Cloud TPU, Slurm, Open MPI, Kubernetes.
        num_processes: of the run; not with "auto".
        process_index: this one, from 0; likewise.
        timeout_seconds: to wait for the others.

    Raises:
        ConfigError: arguments that do not fit each other, or nobody is found.
    """
    host, _, port = coordinator.rpartition(":")
    is_auto = coordinator == "auto"
    given = num_processes is not None, process_index is not None
    if given != (not is_auto, not is_auto):
        raise ConfigError(
            f"--coordinator={coordinator} with --num_processes={num_processes} and "
            f"--process_index={process_index}: give all three (HOST:PORT of process 0, "
            "which is the same everywhere), or --coordinator=auto alone"
        )
    if not is_auto and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(
            f"--coordinator={coordinator} must be HOST:PORT of process 0, or auto"
        )
    if num_processes is not None and not 0 <= (process_index or 0) < num_processes:
        raise ConfigError(
            f"--process_index={process_index} must be at least 0 and below "
            f"--num_processes={num_processes}"
        )
    where = "the processes that this cluster announces"
    if num_processes is not None:
        where = f"{num_processes} processes at {coordinator}"

    def give_up() -> None:
        _leave(
            f"process {process_index if not is_auto else '?'} waited "
            f"{timeout_seconds} s for {where}, and not all of them came; start every "
            "one of them, with the same --coordinator, and check that process 0 can be "
            "reached there"
        )

    # JAX would abort with a stack trace of its own, a little later.
    timer = threading.Timer(timeout_seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            None if is_auto else coordinator,
            num_processes,
            process_index,
            initialization_timeout=timeout_seconds + 30,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        jax.devices()  # the processes exchange what they have
    except (RuntimeError, ValueError, OSError) as error:
        todo = "check address and port"
        if is_auto:
            todo = (
                "auto works on Cloud TPU, in a step of Slurm (start it by srun), under "
                "Open MPI's mpirun, and in a Kubernetes Job with rights to read it; "
                "elsewhere give HOST:PORT, --num_processes and --process_index"
            )
        raise ConfigError(
            f"--coordinator={coordinator}: no connection ({error!s:.500}); {todo}"
        ) from error
    finally:
        timer.cancel()
    return Lifeline(host if host and not is_auto else None)


# ---------------------------------------------------------------- acting alike


def needs_one(what: str) -> None:
    """Refuses several processes.

    Args:
        what: does not work with them, for the message.

    Raises:
        ConfigError: there are several.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"{what} runs in one process, found {jax.process_count()}; a checkpoint of "
            "several restores in one, on any number of devices"
        )


def broadcast(value: Any) -> Any:
    """Returns process 0's JSON value on every process; the others' is not looked at."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        sent[:] = text
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return json.loads(received.astype(np.uint8).tobytes())


def gather(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns every process's rows, in process order, to the bit.

    Args:
        arrays: name -> [n, ...]; n and the rest are the same on every process.
    """
    if jax.process_count() == 1:
        return dict(arrays)
    # As bytes, since JAX would make 64-bit numbers 32-bit ones.
    rows = [
        np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8)
        for x in arrays.values()
    ]
    sent = np.concatenate(rows, axis=1)
    everyone = np.asarray(multihost_utils.process_allgather(sent, tiled=True))
    ends = np.cumsum([x.shape[1] for x in rows])
    pieces = np.split(everyone, ends[:-1], axis=1)
    return {
        name: np.ascontiguousarray(piece).view(x.dtype).reshape(-1, *x.shape[1:])
        for (name, x), piece in zip(arrays.items(), pieces, strict=True)
    }


class Votes:
    """The largest number that any process has said, known to all after the same call.

    Answers come `lag` calls late, so that nobody waits for them; alone, at once.
    """

    def __init__(self, lag: int) -> None:
        """Nothing has been said."""
        self._lag = lag
        self._flying: deque[jax.Array] = deque()
        self._is_alone = jax.process_count() == 1
        if not self._is_alone:
            mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
            spec = jax.sharding.PartitionSpec
            self._split = jax.sharding.NamedSharding(mesh, spec("all"))
            everywhere = jax.sharding.NamedSharding(mesh, spec())
            self._largest = jax.jit(jnp.max, out_shardings=everywhere)

    def cast(self, value: int) -> int:
        """Says a number >= 0 and returns the largest that was said `lag` calls ago."""
        if self._is_alone:
            return value
        own = np.full(jax.local_device_count(), value, np.int32)
        self._flying.append(
            self._largest(jax.make_array_from_process_local_data(self._split, own))
        )
        if len(self._flying) <= self._lag:
            return 0
        return int(self._flying.popleft())


# ---------------------------------------------------------------- ending together


class Lifeline:
    """A connection of every process with process 0, whose end means the process's.

    A process that is killed closes it by that; one that fails says why first. The
    others tell so and end. Best effort: where process 0 cannot be reached on a port of
    its own choice, JAX's heartbeat is what remains.
    """

    def __init__(self, host: str | None) -> None:
        """Connects all processes; `host` is where process 0 is, None = ask it."""
        self._index, self._count = jax.process_index(), jax.process_count()
        self._peers: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._is_over = False
        server, token = None, secrets.token_hex(16)
        if self._index == 0:
            server = socket.create_server(("", 0), backlog=self._count)
        own = server.getsockname()[1] if server else 0
        hosts, port, token = broadcast([_own_names(), own, token])
        if server is not None:
            self._accept(server, token)
        else:
            with contextlib.suppress(OSError):
                self._connect([host] if host else hosts, port, token)
        found = broadcast(sorted(self._peers))
        if self._index > 0 and self._index not in found:
            # Connected, but not in time: its end would mean nothing.
            self._peers.clear()
        if self._index == 0 and len(found) < self._count - 1:
            print(
                f"only {len(found)} of {self._count - 1} processes reached port {port} "
                "of process 0; the end of another is noticed after "
                f"{HEARTBEAT_SECONDS} s only",
                file=sys.stderr,
            )
        for index, peer in self._peers.items():
            watch = threading.Thread(target=self._watch, args=(index, peer))
            watch.daemon = True
            watch.start()

    def _accept(self, server: socket.socket, token: str) -> None:
        deadline = time.monotonic() + _CONNECT_SECONDS
        with server:
            while len(self._peers) < self._count - 1:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                server.settimeout(left)
                with contextlib.suppress(OSError):
                    peer, _ = server.accept()
                    index = _greeted_by(peer, token)
                    if index is None:
                        peer.close()
                    else:
                        self._peers[index] = peer

    def _connect(self, hosts: Sequence[str], port: int, token: str) -> None:
        peer = _reach(hosts, port)
        peer.sendall(f"{token} {self._index}\n".encode())
        peer.settimeout(None)
        self._peers[0] = peer

    def _watch(self, index: int, peer: socket.socket) -> None:
        try:
            told = peer.makefile("rb").readline(10_000).decode(errors="replace")
        except OSError:
            told = ""
        with self._lock:
            if self._is_over or told.strip() == _GOODBYE:
                return
            self._is_over = True
        reason = told.strip() or f"process {index} has ended without a word"
        self._tell(reason, but=index)
        _leave(
            f"{reason}; process {self._index} of {self._count} ends too. Start all of "
            "them again with the same command: the run goes on from its last checkpoint"
        )

    def _tell(self, text: str, *, but: int | None = None) -> None:
        for index, peer in self._peers.items():
            if index != but:
                with contextlib.suppress(OSError):
                    peer.sendall(text.replace("\n", " ")[:9_000].encode() + b"\n")

    def close(self) -> None:
        """Says that this process ends as it should."""
        with self._lock:
            self._is_over = True
        self._tell(_GOODBYE)

    def fail(self, reason: str) -> None:
        """Tells the others why this process ends, and ends it without waiting."""
        with self._lock:
            is_known, self._is_over = self._is_over, True
        if not is_known:
            self._tell(f"process {self._index} has failed: {reason}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _greeted_by(peer: socket.socket, token: str) -> int | None:
    """Returns the process that a connection is of.

    None = of something else: a port is found by scanners and health probes too, which
    say nothing, or anything, or reset the connection.
    """
    peer.settimeout(_HELLO_SECONDS)
    try:
        hello = peer.makefile("rb").readline(100)
    except OSError:
        return None
    given, _, index = hello.strip().partition(b" ")
    if not (secrets.compare_digest(given, token.encode()) and index.isdigit()):
        return None
    peer.settimeout(None)
    return int(index)


def _own_names() -> list[str]:
    """Returns what others may know this machine by.

    In a pod of Kubernetes the others cannot resolve its short name; the address that it
    has itself for that name they can reach. On some machines that is one of the
    loopback, so the name comes first.
    """
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        return [name, socket.gethostbyname(name)]
    return [name]


def _reach(hosts: Sequence[str], port: int) -> socket.socket:
    """Connects to the first host that answers.

    Raises:
        OSError: none does.
    """
    timeout = _CONNECT_SECONDS / len(hosts)
    for host in hosts[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_connection((host, port), timeout=timeout)
    return socket.create_connection((hosts[-1], port), timeout=timeout)


def _leave(message: str) -> None:
    """Ends the process from any thread; an orderly exit would wait for the others."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
