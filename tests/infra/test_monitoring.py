"""Panels and alarms ask for metrics that there are."""

import json
import re

import yaml
from helpers import ROOT

from infra.monitoring.dashboard import dashboard
from pipelines.pretrain import gauges

INFRA = ROOT / "infra"
OURS = {f"ray_{gauges.PREFIX}{name}" for name in gauges.GAUGES}


def metrics(expression: str) -> set[str]:
    return set(re.findall(r"ray_\w+", expression))


def test_the_dashboard_is_the_one_that_the_script_writes() -> None:
    written = json.loads((INFRA / "monitoring" / "dashboard.json").read_text())
    assert written == dashboard()
    ids = [panel["id"] for panel in written["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_panel_and_alarm_asks_for_what_there_is() -> None:
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    known = OURS | {f"ray_{name}" for name in METRICS_GAUGES}
    path = INFRA / "kubernetes" / "components" / "monitoring" / "alerts.yaml"
    groups = yaml.safe_load(path.read_text())["spec"]["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    for expression in (*rules, *panels):
        assert set() < metrics(expression) <= known, expression
    assert set().union(*map(metrics, panels)) >= OURS  # every gauge is looked at
