"""How much a server takes."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server takes.

    Attributes:
        max_body_bytes: of a request.
        max_candidates: of a request.
        max_concurrent: scoring requests that are read, wait or run; more are refused.
        num_threads: that score; 0 = the number of cores.
        body_seconds: that a request's body may take to arrive.
    """

    max_body_bytes: int = 8_000_000
    max_candidates: int = 10_000
    max_concurrent: int = 64
    num_threads: int = 0
    body_seconds: float = 10.0
