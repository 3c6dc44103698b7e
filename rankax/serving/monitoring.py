"""What the server tells Prometheus."""

from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client import core
from prometheus_client.registry import Collector

from rankax.serving.follow import Follower, identity

# Seconds, dense where a request of some hundred candidates is.
_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class Metrics:
    """The metrics of one server, in a registry of their own.

    Attributes:
        requests: by path and status; 499 = the client went before the answer.
        seconds: from a request's head to the end of its answer, for POST /score.
        candidates: scored.
        in_flight: scoring requests that are read, wait or run.
        refused: scoring requests refused because too many were in flight.
    """

    def __init__(self, follower: Callable[[], Follower | None]):
        """Registers everything.

        Args:
            follower: returns whose deltas and ids outside of tables are told, None
                while there is none.
        """
        self._registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "rankax_requests",
            "HTTP requests answered",
            ["path", "status"],
            registry=self._registry,
        )
        self.seconds = prometheus_client.Histogram(
            "rankax_score_seconds",
            "Seconds from the head of a scoring request to the end of its answer",
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self.candidates = prometheus_client.Counter(
            "rankax_candidates", "Candidates scored", registry=self._registry
        )
        self.in_flight = prometheus_client.Gauge(
            "rankax_in_flight",
            "Scoring requests that are read, wait or run",
            registry=self._registry,
        )
        self.refused = prometheus_client.Counter(
            "rankax_refused",
            "Scoring requests refused because too many were in flight",
            registry=self._registry,
        )
        self._registry.register(_OfFollower(follower))

    def text(self) -> bytes:
        """Returns everything in Prometheus's text format."""
        return prometheus_client.generate_latest(self._registry)


class _OfFollower(Collector):
    """Reads at each scrape what the scorer and its follower count themselves."""

    def __init__(self, follower: Callable[[], Follower | None]):
        self._follower = follower

    def collect(self) -> Iterator[core.Metric]:
        follower = self._follower()
        if follower is None:
            return
        scorer = follower.scorer
        yield core.GaugeMetricFamily(
            "rankax_model_step",
            "Training step of the parameters that score",
            value=scorer.step,
        )
        yield core.GaugeMetricFamily(
            "rankax_delta_number",
            "Number of the last delta applied to the bundle, 0 = none",
            value=scorer.number,
        )
        bundle = identity(scorer.bundle.signature)
        yield core.InfoMetricFamily(
            "rankax_bundle", "The bundle that scores", value={"id": bundle}
        )
        yield core.CounterMetricFamily(
            "rankax_deltas_applied", "Deltas applied", value=follower.num_deltas
        )
        yield core.CounterMetricFamily(
            "rankax_delta_errors",
            "Looks at the bundle's folder that met a delta or a bundle not to be used",
            value=follower.num_errors,
        )
        yield core.CounterMetricFamily(
            "rankax_bundles_opened", "Bundles opened", value=follower.num_bundles
        )
        outside = core.CounterMetricFamily(
            "rankax_out_of_vocabulary",
            "Ids outside of their table since the bundle was opened",
            labels=["table"],
        )
        for table, count in scorer.out_of_vocabulary.items():
            outside.add_metric([table], count)
        yield outside
