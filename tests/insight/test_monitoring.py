"""The Grafana dashboard and the alert rules under conf/ use what the daemon really exports."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from shadowmesh.insight import metrics, status
from tests.control.fake_control import AT_HOME, CONNECTED, NOW
from tests.insight.test_metrics import full

CONF = Path(__file__).parents[2] / "conf"
ALERTS = CONF / "prometheus-alerts.yaml"
DASHBOARD = json.loads((CONF / "grafana-dashboard.json").read_text())

EVERYTHING = dataclasses.replace(
    CONNECTED,
    now=NOW,
    network=AT_HOME,
    health=(
        status.Check("member_certificate", False, "error", "gone", "join", "certificate_removed"),
    ),
    certificate=status.Certificate(1.0, "00"),
    paths=(status.Path("udp", "192.0.2.1:9001", "host", True, True, 0.5, 0.1, 1400),),
    counters=dataclasses.replace(
        CONNECTED.counters,
        udp_refused={"replay": 1},
        udp_errors={"EPERM": 1},
        loops_refused={"dial": 1},
    ),
)
#: made by Prometheus itself
OF_PROMETHEUS = {"up"}


def exported():
    """Return {sample name: the names of its labels}."""
    text = metrics.render(metrics.make_registry(full(EVERYTHING))).decode()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def dashboard_queries():
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [one["query"] for one in DASHBOARD["templating"]["list"]]
    return found + [one["query"] for one in variables if isinstance(one, dict)]


def alert_queries():
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


QUERIES = dashboard_queries() + alert_queries()


@pytest.mark.parametrize("query", QUERIES)
def test_every_metric_and_label_that_is_asked_for_is_exported(query):
    known = exported()
    names = set(re.findall(r"\bshadowmesh_\w+", query))
    assert names or OF_PROMETHEUS & set(re.findall(r"\w+", query))
    for name in names:
        assert name in known
        for selector in re.findall(rf"{name}\{{([^}}]*)\}}", query):
            labels = set(re.findall(r"(\w+)\s*[=!]", selector))
            assert labels <= known[name] | {"job", "instance"}


def test_every_metric_is_on_the_dashboard_or_in_an_alert():
    asked = set(re.findall(r"\bshadowmesh_\w+", " ".join(QUERIES)))
    aside = {
        "shadowmesh_state_since_timestamp_seconds", "shadowmesh_session_rekeys",
        "shadowmesh_paths_proven", "shadowmesh_process_threads", "shadowmesh_process_open_fds",
        "shadowmesh_events_total", "shadowmesh_listeners", "shadowmesh_listeners_ended_total",
        "shadowmesh_tap_queue_frames_total",
    }  # fmt: skip
    suffixes = ("_sum", "_count")  # of the histograms, whose buckets are asked for
    told = {name for name in exported() if not name.endswith(suffixes)}
    assert told - asked == aside


def test_counters_end_in_total_and_times_and_sizes_have_a_unit():
    text = metrics.render(metrics.make_registry(full(EVERYTHING))).decode()
    for family in text_string_to_metric_families(text):
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        else:
            assert not family.name.endswith("_total")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_the_panels_have_titles_and_do_not_overlap():
    taken = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_finds_no_fault_in_the_rules():
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", ALERTS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_finds_no_fault_in_the_metrics():
    text = metrics.render(metrics.make_registry(full(EVERYTHING)))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_can_read_the_queries_of_the_dashboard(tmp_path):
    # The linter reads rules only, so each query becomes one; Grafana's variables get a value.
    def plain(query):
        return (
            query.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*")
        )

    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = [{"record": f"q:{n}", "expr": plain(query)} for n, query in enumerate(queries)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
