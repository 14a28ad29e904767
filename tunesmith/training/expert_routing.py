"""How a mixture of experts routes its tokens: the load-balancing loss and each layer's load, seen at its routers.

A model without experts has a loss of 0 and no load. n: tokens of a micro-batch without padding, E: experts.
"""

from functools import partial

import torch
import torch.nn.functional as F

from tunesmith.errors import UserError
from tunesmith.model.experts import experts_per_token, routers
from tunesmith.training import distributed
from tunesmith.training.batch import Batch


class Routing:
    """Watches a model's routers. Raises UserError for a loss without routers."""

    def __init__(self, model, coefficient: float):
        self._coefficient = coefficient
        self._experts_per_token = experts_per_token(model.config)
        self._logits: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._gives_probabilities: bool | None = None  # until the first pass
        self._watched = routers(model) if self._experts_per_token else {}
        if coefficient and not self._watched:
            raise UserError("method.router_loss: this model has no experts, or none whose routers can be seen")
        for name, (module, index) in self._watched.items():
            module.register_forward_hook(partial(self._note, name, index))

    def _note(self, name: str, index: int, module, inputs, outputs) -> None:
        recomputing = torch._C._current_graph_task_id() != -1  # whose logits would keep what was recomputed before them
        if module.training and torch.is_grad_enabled() and not recomputing:
            self._logits[name] = outputs[index] if isinstance(outputs, tuple) else outputs

    def loss(self, batch: Batch, step_tokens: float) -> torch.Tensor | float:
        """The part of a micro-batch, and of the routers that ran since the last call, in the step's loss: coefficient
        times the mean over layers of E * sum of (share of tokens * mean probability), equations 4 to 6 of Fedus et al.
        2021, weighted by the micro-batch's tokens."""
        losses = []
        for name, logits_nE in self._logits.items():
            probability_nE = self._probabilities(_without_padding(logits_nE, batch).float())
            chosen_nk = probability_nE.topk(self._experts_per_token).indices
            experts = probability_nE.shape[-1]
            counts_E = F.one_hot(chosen_nk, experts).sum((0, 1))
            self._counts[name] = self._counts.get(name, 0) + counts_E
            losses.append(experts * (counts_E / len(probability_nE) * probability_nE.mean(0)).sum())
        self._logits.clear()
        if not self._coefficient or not losses:
            return 0.0
        mean = torch.stack(losses).sum() / len(self._watched)  # a walk runs one layer at a time
        return self._coefficient * mean * (sum(batch.lengths) / step_tokens)

    def _probabilities(self, router_nE: torch.Tensor) -> torch.Tensor:
        """Returns a router's output as probabilities; Gemma 4's routers give probabilities already. The check runs
        once, because it waits for the device."""
        if self._gives_probabilities is None:
            rows_n = router_nE.detach().sum(-1)
            self._gives_probabilities = bool(
                (router_nE >= 0).all() and torch.allclose(rows_n, torch.ones_like(rows_n), atol=0.01)
            )
        return router_nE if self._gives_probabilities else router_nE.softmax(-1)

    def forget(self) -> None:
        """Drops the records of a step that is repeated."""
        self._logits.clear()
        self._counts.clear()

    def load(self) -> dict:
        """{expert_load}: for each layer, tokens of the busiest expert over their mean, of all processes since the last
        call; 1 is even."""
        if not self._watched:
            return {}
        gathered = distributed.gather({name: counts_E.tolist() for name, counts_E in self._counts.items()})
        self._counts.clear()
        shares = [share for share in gathered if share]  # a process may have had no micro-batch
        if not shares:
            return {}
        names = [name for name in self._watched if name in shares[0]]  # a walk leaves out layers below all trained ones
        layers = [torch.tensor([share[name] for share in shares]).sum(0).float() for name in names]
        return {"expert_load": [round((total_E.max() / total_E.mean()).item(), 3) for total_E in layers]}


def _without_padding(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    return logits if batch.packed else logits[batch.real_n().to(logits.device)]
