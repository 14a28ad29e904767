"""Random numbers of a run. They are functions of numbers such as seed and step, so nothing of them is saved."""

import numpy as np
import torch


def set_seed(*numbers: int) -> None:
    """Random numbers from here on are a function of these."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))
