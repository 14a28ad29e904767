"""Prefixes seen before: keys and values of finished answers, kept for prompts that begin alike."""

from tunesmith.inference.loaded_model import KV

WORTH_TOKENS = 16
MOST = 64


class PrefixCache:
    """The most recently used ones, MOST of them, up to a number of bytes. `owner` is what the keys were computed by."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._entries: list[tuple[str, list[int], KV]] = []

    def find(self, owner: str, ids: list[int]) -> tuple[KV | None, int]:
        """Returns the longest known prefix of `ids`, never all of it, to continue from, and its number of tokens."""
        best, length = None, 0
        for entry in self._entries:
            if entry[0] == owner and (shared := _shared(entry[1], ids)) > length:
                best, length = entry, shared
        length = min(length, len(ids) - 1)
        if length < WORTH_TOKENS:
            return None, 0
        self._entries.append(self._entries.pop(self._entries.index(best)))
        return best[2].head(length), length

    def keep(self, owner: str, ids: list[int], kv: KV) -> None:
        """Takes over `kv`, which holds exactly `ids`; what it makes superfluous goes."""
        if len(ids) < WORTH_TOKENS:
            return kv.free()
        for entry in [e for e in self._entries if e[0] == owner and _shared(e[1], ids) == len(e[1])]:
            self._drop(entry)
        self._entries.append((owner, ids, kv))
        self.nbytes += kv.nbytes
        self.shrink(self.limit_bytes)

    def shrink(self, limit_bytes: int) -> None:
        while self._entries and (self.nbytes > limit_bytes or len(self._entries) > MOST):
            self._drop(self._entries[0])

    def _drop(self, entry) -> None:
        self._entries.remove(entry)
        self.nbytes -= entry[2].nbytes
        entry[2].free()


def _shared(first: list[int], second: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next(i for i in range(most) if first[i] != second[i])
