"""Write the Grafana dashboard: one panel a question, from the metrics of Ray and of our jobs.

$ python -m infra.monitoring.dashboard > infra/monitoring/dashboard.json
"""

import json
import sys
from typing import Any

# Title, unit, expressions and their legends.
PANELS: list[tuple[str, str, dict[str, str]]] = [
    ("Images per second", "short", {"ray_context_encoder_images_per_second": "{{run}}"}),
    ("Step", "short", {"ray_context_encoder_step": "{{run}}"}),
    ("Time without batches", "percentunit", {"ray_context_encoder_data_wait_share": "{{run}}"}),
    ("Losses", "short", {"ray_context_encoder_loss": "{{run}} {{loss}}"}),
    ("PSNR in the hole", "dB", {"ray_context_encoder_validation_psnr": "{{run}}"}),
    (
        "Restarts, skipped updates",
        "short",
        {
            "ray_context_encoder_restarts": "{{run}} restarts",
            "ray_context_encoder_updates_skipped": "{{run}} skipped",
        },
    ),
    ("Memory of the training", "bytes", {"ray_context_encoder_memory_bytes": "{{run}}"}),
    ("GPU busy", "percent", {"ray_node_gpus_utilization": "{{ip}} {{GpuIndex}}"}),
    ("CPU busy", "percent", {"ray_node_cpu_utilization": "{{ip}}"}),
    ("Memory of the nodes", "bytes", {"ray_node_mem_used": "{{ip}}"}),
]
SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """The whole of it, two panels a row."""
    panels = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": title,
            "datasource": SOURCE,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(65 + i), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
                for i, (expr, legend) in enumerate(queries.items())
            ],
        }
        for number, (title, unit, queries) in enumerate(PANELS)
    ]
    source = {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": "context-encoder",
        "title": "Context encoder",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=2)
    sys.stdout.write("\n")
