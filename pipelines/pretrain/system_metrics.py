"""What a node is busy with, by the names of MLflow's system metrics, one set per node."""

import time

import psutil
import torch

EVERY_S = 10.0
MEGABYTE = 1e6


class SystemMetrics:
    """Looks at the machine of this process; one process per node does."""

    def __init__(self, node: str, device: torch.device) -> None:
        """Nothing seen yet.

        Args:
            node: name of the node in the curves.
            device: whose memory is told, too.
        """
        self._node, self._device = node, device
        self._looked_at = -EVERY_S
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # the first answer is about no time

    def take(self) -> dict[str, float] | None:
        """Curves since the last time; None within 10 s of it."""
        now = time.monotonic()
        if now - self._looked_at < EVERY_S:
            return None
        self._looked_at = now
        memory, network = psutil.virtual_memory(), psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
        }
        if network is not None and self._network is not None:
            received = network.bytes_recv - self._network.bytes_recv
            sent = network.bytes_sent - self._network.bytes_sent
            found["network_receive_megabytes"] = received / MEGABYTE
            found["network_transmit_megabytes"] = sent / MEGABYTE
            self._network = network
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            found["gpu_0_memory_usage_megabytes"] = (total - free) / MEGABYTE
            found["gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
        return {f"system/{self._node}/{name}": value for name, value in found.items()}
