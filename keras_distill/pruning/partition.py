"""A partition of channels, by ties: collected as arrays, and solved once at the end."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


class Partition:
    """Channels, numbered from 0, some of which are tied and some of which may not be cut.

    Example:
        >>> channels = Partition()
        >>> channels.tie(channels.new(2), channels.new(2))
        >>> channels.roots()
        array([0, 1, 0, 1])
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._count = 0
        self._pairs: list[np.ndarray] = []
        self._fixed: list[np.ndarray] = []

    def new(self, size: int) -> np.ndarray:
        """The numbers of `size` new channels."""
        start, self._count = self._count, self._count + size
        self._sizes.append(size)
        return np.arange(start, self._count)

    def tie(self, *parts: np.ndarray) -> None:
        """Channels at the same place of all `parts` are one."""
        for other in parts[1:]:
            if len(other) != len(parts[0]):
                raise ValueError(f"channels are tied place by place; got {len(parts[0])} and {len(other)} of them")
            if other is not parts[0]:
                self._pairs.append(np.stack([parts[0], other]))

    def fix(self, channels: np.ndarray) -> None:
        """These may not be cut."""
        self._fixed.append(channels)

    def fixed(self) -> np.ndarray:
        """The channels that may not be cut, as they were given."""
        return np.concatenate([np.zeros(0, dtype=int), *self._fixed])

    def spaces(self) -> np.ndarray:
        """For each channel, which call of `new` gave it."""
        return np.repeat(np.arange(len(self._sizes)), self._sizes)

    def roots(self) -> np.ndarray:
        """For each channel, the first of those that it is tied to."""
        pairs = np.concatenate([np.zeros((2, 0), dtype=int), *self._pairs], axis=1)
        edges = coo_array((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(self._count, self._count))
        _, labels = connected_components(edges, directed=False)
        _, firsts = np.unique(labels, return_index=True)
        return firsts[labels]
