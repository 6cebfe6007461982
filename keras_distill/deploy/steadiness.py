"""Does an artifact give an example the same outputs again, alone, and in another place of another batch?

A dropout that stayed on, a state kept from call to call, a normalisation over the batch: on one pass over the data in
one order none of them needs to show.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

NUM_PROBES = 8
NUM_ALONE = 3
# Examples a call, where there are as many.
CALL = 256


def unsteadiness(
    artifact: Any,
    feed: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    spreads: Mapping[str, float],
    precision: str,
) -> tuple[list[str], list[str]]:
    """Problems and remarks about how an artifact answers some examples in other company.

    Costs the time of a call as large as those before, and of 35 examples: one call whose examples stand one place on,
    eight probes twice in a batch, in both orders, that batch again, and three alone.

    Args:
        artifact: of the kit.
        feed: all inputs, `{input name: (num_items, ...)}`.
        found: what it answered to them, `{output name: (num_items, ...)}`.
        spreads: how much each output varies from example to example, in its own unit.
        precision: an int8 file may find its ranges anew at every call; then only what is no rounding is a problem.
    """
    num_items = len(next(iter(feed.values())))
    probes = np.unique(np.linspace(0, num_items - 1, min(num_items, NUM_PROBES)).astype(int))
    # Each probe twice, so that one example alone has company too and all have another place.
    order = np.concatenate([probes[::-1], probes])
    turned = np.roll(np.arange(min(num_items, CALL)), 1)

    def run(items: np.ndarray) -> Mapping[str, np.ndarray]:
        return artifact.run({name: np.ascontiguousarray(array[items]) for name, array in feed.items()})

    # First of all a call of the same size and of other examples: a runtime that moved its memory in the call before may
    # still read what lay there.
    other, first, again = run(turned), run(order), run(order)
    problems: list[str] = []
    remarks: list[str] = []
    if any(not _same(again[name], first[name], 1e-5, spreads[name]) for name in found):
        return ["the same input gets other outputs when it is asked again"], remarks

    def note(sentence: str, pairs: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
        if all(_same(a, b, 1e-3, spreads[name]) for name, a, b in pairs):
            return
        is_rounding = precision == "int8" and all(_is_rounding(a, b, spreads[name]) for name, a, b in pairs)
        (remarks if is_rounding else problems).append(sentence)

    alone = probes[:: max(1, len(probes) // NUM_ALONE)][:NUM_ALONE]
    ones = {int(item): run(np.array([item])) for item in alone}
    note(
        "an example alone gets other outputs than in a batch",
        [(name, ones[int(item)][name], found[name][item : item + 1]) for item in alone for name in found],
    )
    note(
        "an example gets other outputs in another place of another batch",
        [
            (name, answer[name], found[name][items])
            for items, answer in ((order, first), (turned, other))
            for name in found
        ],
    )
    return problems, remarks


def _same(one: np.ndarray, other: np.ndarray, tolerance: float, spread: float) -> bool:
    if one.shape != other.shape:
        return False
    # Rounding of float32 is a share of the values, and of what they were summed up from.
    return bool(np.allclose(one, other, rtol=tolerance, atol=max(tolerance * spread, 1e-6), equal_nan=True))


def _is_rounding(one: np.ndarray, other: np.ndarray, spread: float) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.sqrt(np.mean((one.astype("float64") - other) ** 2)) <= 0.3 * spread)
