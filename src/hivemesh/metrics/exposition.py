"""Metrics in Prometheus' text format, from what was summed up and what parts of the daemon say of themselves."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hivemesh.meters import Durations
from hivemesh.metrics.families import FAMILIES, Family
from hivemesh.metrics.tally import Labels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What every version of Prometheus takes."""

Values = Mapping[Labels, float]
Histograms = Mapping[Labels, Durations]


class Page(Collector):
    """One answer to one scrape: families without a value are left out."""

    def __init__(self) -> None:
        self._values: dict[str, Values] = {}
        self._histograms: dict[str, Histograms] = {}

    def put(self, family: Family, values: Values) -> None:
        """Of a counter or gauge, by labels in the family's order."""
        self._values[family.name] = values

    def put_one(self, family: Family, value: float) -> None:
        self.put(family, {(): value})

    def put_durations(self, family: Family, histograms: Histograms) -> None:
        self._histograms[family.name] = histograms

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            if family.name in self._histograms:
                yield self._histogram(family)
            elif family.name in self._values:
                kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
                found = kind(family.name, family.help, labels=family.labels)
                for labels, value in sorted(self._values[family.name].items()):
                    found.add_metric(labels, value)
                yield found

    def _histogram(self, family: Family) -> HistogramMetricFamily:
        found = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, durations in sorted(self._histograms[family.name].items(), key=lambda item: item[0]):
            bounds = [*(f"{bound:g}" for bound in durations.bounds), "+Inf"]
            found.add_metric(labels, list(zip(bounds, accumulate(durations.counts), strict=True)), durations.total)
        return found

    def text(self) -> bytes:
        """With what the process itself takes."""
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(namespace="hivemesh", registry=registry)
        return generate_latest(registry)
