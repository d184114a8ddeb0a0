"""Prometheus metric families out of plain numbers.

Owns: the prefix of all names, the forms that a number takes. Does not know: which metrics there are
(`metrics`, `network_metrics`), who serves them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

if TYPE_CHECKING:
    from shadowmesh.insight.histogram import Histogram


def gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    """A gauge without labels; nothing when the value is not known."""
    if value is not None:
        yield GaugeMetricFamily(f"shadowmesh_{name}", text, value=float(value))


def counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"shadowmesh_{name}", text, value=value)


def labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    label: str,
    values: Iterable[tuple[str, float]],
) -> Metric:
    family: Any = kind(f"shadowmesh_{name}", text, labels=[label])
    for value_of_label, value in values:
        family.add_metric([value_of_label], value)
    return family  # type: ignore[no-any-return]


def histogram(
    name: str, text: str, label: str, histograms: Mapping[str, Histogram]
) -> HistogramMetricFamily:
    """Histograms by one label; label empty: a single one without."""
    family = HistogramMetricFamily(f"shadowmesh_{name}", text, labels=[label] if label else [])
    for value, histogram in histograms.items():
        family.add_metric([value] if label else [], list(histogram.buckets()), histogram.sum)
    return family


def info(name: str, text: str, labels: Mapping[str, str | None]) -> Iterator[Metric]:
    """A gauge that is always 1 and says something in its labels; nothing while that is unknown."""
    known = {label: value for label, value in labels.items() if value is not None}
    if known:
        family = GaugeMetricFamily(f"shadowmesh_{name}_info", text, labels=list(known))
        family.add_metric(list(known.values()), 1)
        yield family
