"""Follows a bundle's folder: applies its deltas, and opens the bundle that replaces it.

A trainer that goes on publishes deltas into the folder of its bundle, and now and then
a whole new bundle in its place (`rankax.serving.delta`). A `Follower` looks there every
so often. What it cannot take (a delta that is damaged or missing, a bundle that does
not reproduce its golden candidates) is told once in the log and tried again at each
look; the scorer that there is goes on scoring.
"""

from collections.abc import Callable, Mapping
import logging
import pathlib
import threading
import time
from typing import Any

from rankax.data.errors import DataError
from rankax.serving.bundle import BundleError, identity_in
from rankax.serving.scorer import Scorer

# A bundle is opened again at most so often when it is replaced while it is opened.
_OPENINGS = 5
# One that is refused is opened again after so many times as long as that took.
_REST = 10
_log = logging.getLogger(__name__)


class Follower:
    """Keeps a scorer at the newest parameters of a folder.

    One thread looks; any number of others may read the attributes.

    Attributes:
        folder: of the bundle and its deltas.
        scorer: the newest one. Take it once for each request: it may be replaced.
        problem: what kept the last look from taking what is there; "" = nothing.
        num_deltas: deltas applied so far.
        num_errors: looks so far that met a problem.
        num_bundles: bundles opened so far.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        poll_seconds: float = 1.0,
        opener: Callable[[pathlib.Path], Scorer] = Scorer,
    ):
        """Opens the bundle and applies the deltas that are there.

        Args:
            folder: of the bundle.
            poll_seconds: from one look to the next; 0 = none after this one.
            opener: opens a bundle and checks it.

        Raises:
            BundleError: it cannot be opened. A delta that cannot be applied is a
                `problem`, and the scorer is at the one before.
        """
        self.folder = pathlib.Path(folder)
        self.problem = ""
        self.num_deltas = self.num_errors = self.num_bundles = 0
        self._poll_seconds, self._opener = poll_seconds, opener
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._refused, self._not_before = "", 0.0
        self.scorer = self._open()
        self._look(lambda: self._catch_up(self.scorer))

    def start(self) -> None:
        """Looks from now on, in a thread of its own, until `stop`."""
        if self._poll_seconds:
            self._thread = threading.Thread(
                target=self._run, name="follower", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Ends the looking; the scorer stays usable."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def poll(self) -> None:
        """Looks once: opens a bundle that is new, then applies its next deltas."""
        self._look(self._take_all)

    def _run(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            self.poll()

    def _look(self, take: Callable[[], None]) -> None:
        try:
            take()
        except DataError as error:
            self._tell(str(error))
        except Exception as error:  # a look must not be the last one
            self._tell(f"{type(error).__name__}: {error}", is_unexpected=True)
        else:
            if self.problem:
                _log.info("%s: no problem any more", self.folder)
            self.problem = ""

    def _tell(self, problem: str, *, is_unexpected: bool = False) -> None:
        self.num_errors += 1
        if problem != self.problem:
            _log.error("%s; trying again at each look", problem, exc_info=is_unexpected)
        self.problem = problem

    def _take_all(self) -> None:
        if identity_in(self.folder) == identity(self.scorer.bundle.signature):
            self._catch_up(self.scorer)
        elif time.monotonic() < self._not_before:
            raise BundleError(self._refused)
        else:
            self._replace()

    def _replace(self) -> None:
        """Opens the new bundle beside the old one, and takes it.

        Raises:
            BundleError: it cannot be opened, and the old one stays; or one of its
                deltas cannot be applied.
        """
        begin = time.monotonic()
        try:
            scorer = self._open()
        except Exception as error:  # whatever it is, the old one must go on
            end = time.monotonic()
            self._not_before = end + _REST * (end - begin)
            self._refused = (
                f"a new bundle is refused, the one before goes on scoring: {error}"
            )
            raise BundleError(self._refused) from error
        try:
            self._catch_up(scorer)
        finally:
            self.scorer = scorer
            told = identity(scorer.bundle.signature), scorer.step
            _log.info("%s: new bundle %s, step %d", self.folder, *told)

    def _catch_up(self, scorer: Scorer) -> None:
        """Applies the next deltas, as far as they are there.

        Raises:
            DeltaError: one is damaged, or missing with later ones there.
        """
        first = scorer.number
        try:
            scorer.catch_up()
        finally:
            self.num_deltas += scorer.number - first

    def _open(self) -> Scorer:
        for _ in range(_OPENINGS):
            found = identity_in(self.folder)
            scorer = self._opener(self.folder)
            # Another bundle may have taken its place between the files.
            if identity_in(self.folder) == found == identity(scorer.bundle.signature):
                self.num_bundles += 1
                return scorer
        raise BundleError(
            f"{self.folder} was replaced {_OPENINGS} times while it was opened; "
            "publish bundles less often"
        )


def identity(signature: Mapping[str, Any]) -> str:
    """Returns which bundle a signature is of; "" = of none that could be opened."""
    return str(signature.get("id", ""))
