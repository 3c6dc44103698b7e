"""The lock of a run folder on a store: an object that its owner keeps renewing.

A store cannot tell that a process has died. Whoever finds a lock therefore watches it:
renewed meanwhile, the folder is in use; not renewed for `STALE_SECONDS`, or of a
process of this machine that is no more, it is taken over. No clocks are compared.

Promise: of those that find no lock, one gets it (a conditional put). Of those that take
over one stale lock, the last one to write keeps it, and the others find that out
`SETTLE_SECONDS` later, unless a write takes longer than that; an owner that was itself
stopped for longer than `STALE_SECONDS` finds out by `check`, before it saves the next
checkpoint. Had it stopped just before it wrote a renewal, it has the lock again, and
`check` tells the other one.
"""

from collections.abc import Callable
import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any, Self
import uuid

from etils import epath

from rankax.config.base import ConfigError
from rankax.observe import stores

RENEW_SECONDS = 15.0
STALE_SECONDS = 90.0
SETTLE_SECONDS = 2.0


class StoreLock:
    """Holds the lock within a `with` block."""

    def __init__(self, path: epath.Path, *, tell: Callable[[str], None]) -> None:
        """Takes the object's path and what tells the user about a wait."""
        self._path = path
        self._store, self._key = stores.filesystem(path)
        self._tell = tell
        self._own = {
            "owner": f"process {os.getpid()} on {socket.gethostname()}",
            "machine": _machine(),
            "pid": os.getpid(),
            "id": uuid.uuid4().hex,
            "renewals": 0,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Takes the lock.

        Raises:
            ConfigError: another run holds it.
            StoreError: the store does not do what it is asked.
        """
        with stores.explained(self._path, "cannot be locked"):
            found = self._read()  # some stores do not know the condition of the put
            if found or not self._create():
                self._take_over(found or self._read())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the lock back, unless another run has it by now."""
        self._ended.set()
        self._thread.join()
        # What cannot be deleted goes stale.
        with contextlib.suppress(Exception):
            if self._is_own(self._read()):
                self._store.rm_file(self._key)

    def check(self) -> None:
        """Reads the lock again: is it still held?

        Raises:
            ConfigError: another run has taken the folder over.
            StoreError: the store cannot be read.
        """
        with stores.explained(self._path, "cannot be read"):
            is_own = self._is_own(self._read())
        if not is_own:
            raise ConfigError(
                f"--workdir={self._path.parent} was taken over by another run while "
                f"this one did not answer for {STALE_SECONDS:.0f} s; let that run go "
                "on, or stop it and start this command again"
            )

    def _create(self) -> bool:
        try:
            self._store.pipe_file(self._key, self._content(), mode="create")
        except FileExistsError:
            return False
        return True

    def _take_over(self, found: dict[str, Any]) -> None:
        """Waits until the lock found is stale, then writes over it."""
        if found and not _is_dead(found):
            self._tell(
                f"{self._path.parent} is locked by {found['owner']}; waiting up to "
                f"{STALE_SECONDS:.0f} s to see whether that run is alive"
            )
            deadline = time.monotonic() + STALE_SECONDS
            while time.monotonic() < deadline:
                time.sleep(RENEW_SECONDS / 4)
                now = self._read()
                if not now:
                    break
                if now != found:
                    self._refuse(now)
        self._store.pipe_file(self._key, self._content())
        time.sleep(SETTLE_SECONDS)
        now = self._read()
        if not self._is_own(now):
            self._refuse(now)

    def _refuse(self, found: dict[str, Any]) -> None:
        raise ConfigError(
            f"--workdir={self._path.parent} is in use by "
            f"{found.get('owner', 'another process')}; wait for its end, or name "
            "another folder"
        )

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            # A store out of reach may come back; whether another run has taken the
            # lock meanwhile shows then.
            with contextlib.suppress(Exception):
                if not self._is_own(self._read()):
                    return
                self._own["renewals"] += 1
                self._store.pipe_file(self._key, self._content())

    def _content(self) -> bytes:
        return json.dumps(self._own).encode()

    def _read(self) -> dict[str, Any]:
        """Returns what the lock says; nothing if it is gone or says nothing."""
        try:
            found = json.loads(self._store.cat_file(self._key))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _is_own(self, found: dict[str, Any]) -> bool:
        return found.get("id") == self._own["id"]


def _is_dead(found: dict[str, Any]) -> bool:
    """Tells whether the owner was a process of this machine and is no more."""
    pid = found.get("pid")
    if not isinstance(pid, int) or not _machine() or found.get("machine") != _machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _machine() -> str:
    """Names this machine, since its start, and whose pids count; "" if unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
