"""Drawing one token from the logits of one sequence (V: vocabulary)."""

from collections import Counter

import torch

from tunesmith.inference.interface import Sampling


class Sampler:
    """Draws the tokens of one answer; the same seed draws the same tokens from the same logits."""

    def __init__(self, sampling: Sampling, ids: list[int]):
        self.sampling = sampling
        self._seen = set(ids)
        self._counts: Counter[int] = Counter()
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self.takes_largest = sampling == Sampling(seed=sampling.seed)
        """Whether it only ever takes the largest logit as it is."""

    def __call__(self, logits_V: torch.Tensor) -> int:
        """`logits_V`: float32 on the CPU; changed in place."""
        self._penalise(logits_V)
        token = int(logits_V.argmax()) if self.sampling.temperature == 0 else self._draw(logits_V)
        self._seen.add(token)
        self._counts[token] += 1
        return token

    def _penalise(self, logits_V: torch.Tensor) -> None:
        """Repetition penalty as in transformers (arXiv:1909.05858), frequency and presence penalty and bias as in
        OpenAI's API."""
        sampling = self.sampling
        if sampling.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._seen))
            values, factor = logits_V[seen], sampling.repetition_penalty
            logits_V[seen] = torch.where(values < 0, values * factor, values / factor)
        if (sampling.frequency_penalty or sampling.presence_penalty) and self._counts:
            counts = torch.tensor(list(self._counts.values()))
            logits_V[list(self._counts)] -= sampling.frequency_penalty * counts + sampling.presence_penalty
        for token, bias in sampling.logit_bias.items():
            logits_V[token] += bias

    def _draw(self, logits_V: torch.Tensor) -> int:
        order, shares = self.shares(logits_V)
        return int(order[torch.multinomial(shares, 1, generator=self._generator)])

    def shares(self, logits_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the tokens that may be drawn, most likely first, and their shares: temperature, then top-k, top-p
        (arXiv:1904.09751), then min-p (arXiv:2407.01082), as in transformers."""
        sampling = self.sampling
        scores = logits_V / sampling.temperature
        count = min(sampling.top_k or len(scores), len(scores))
        values, order = scores.topk(count) if count < len(scores) else scores.sort(descending=True)
        shares = values.softmax(-1)
        left_out = (shares.cumsum(-1) - shares >= sampling.top_p) | (shares < sampling.min_p * shares[0])
        left_out[0] = False
        return order, shares.masked_fill(left_out, 0)
