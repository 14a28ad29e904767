"""bitsandbytes' paged AdamW, whose moments are still paged after a checkpoint was loaded."""

from bitsandbytes.optim import PagedAdamW8bit


class PagedAdamW(PagedAdamW8bit):
    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)  # which puts all of it on the GPU
        for values in self.state.values():
            for key in ("state1", "state2"):
                values[key] = self.get_state_buffer(values[key], values[key].dtype).copy_(values[key])
