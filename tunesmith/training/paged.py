"""bitsandbytes' paged AdamW, whose moments are still paged after a checkpoint was loaded."""

from contextlib import nullcontext

import torch
from bitsandbytes.optim import PagedAdamW8bit

from tunesmith.training.planned_device import host_memory

LEAST_PAGED = 100_000  # elements: bitsandbytes leaves the moments of smaller parameters on the GPU


class PagedAdamW(PagedAdamW8bit):
    _cpu_paged_warned = True  # it is on the CPU only where the planner traces it

    def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Pages count as host memory, to which the driver moves them when the GPU's is needed."""
        with host_memory("moments") if p.numel() >= LEAST_PAGED else nullcontext():
            return super().get_state_buffer(p, dtype)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)  # which puts all of it on the GPU
        for values in self.state.values():
            for key in ("state1", "state2"):
                values[key] = self.get_state_buffer(values[key], values[key].dtype).copy_(values[key])
