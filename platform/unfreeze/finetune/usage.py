"""How busy the machine was while a trial trained, under the names of MLflow's system metrics."""

import contextlib

import psutil
import torch

_MEGABYTE = 1e6


class Meter:
    """Counts from the moment it is made. All cores and cards of this machine that the process may see, whoever uses
    them."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # each call tells of the time since the one before

    def read(self) -> dict[str, float]:
        """CPU since it was last read; memory and GPUs at this moment."""
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
        }
        for card in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(card)
            found[f"gpu_{card}_memory_usage_percentage"] = 100 * (total - free) / total
            found[f"gpu_{card}_memory_usage_megabytes"] = (total - free) / _MEGABYTE
            with contextlib.suppress(
                ModuleNotFoundError
            ):  # of nvidia-ml-py, without which only memory can be asked for
                found[f"gpu_{card}_utilization_percentage"] = torch.cuda.utilization(card)
        return {name: round(value, 1) for name, value in found.items()}
