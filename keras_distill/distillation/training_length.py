"""How long a student trains where nobody says, and how to tell that it was too short.

Figures are in `docs/distill.md`.
"""

import math
from collections.abc import Sequence

# So many steps small students take until another doubling changes little; see the table in docs/distill.md.
_ENOUGH_STEPS = 4000
_FEWEST_EPOCHS, _MOST_EPOCHS = 20, 1000
# A loss that falls by more than this share between the second and the third quarter of a training was still falling.
_STILL_FALLING = 0.05


def default_epochs(num_examples: int, batch_size: int) -> int:
    """Epochs of 4,000 steps in all; at least 20, so that each example is seen so often, and at most 1,000.

    Args:
        num_examples: of the training split.
        batch_size: examples a step.

    Example:
        >>> default_epochs(719, 128), default_epochs(55_000, 128), default_epochs(64, 128)
        (667, 20, 1000)
    """
    steps_per_epoch = math.ceil(num_examples / batch_size)
    return min(max(math.ceil(_ENOUGH_STEPS / steps_per_epoch), _FEWEST_EPOCHS), _MOST_EPOCHS)


def fall(losses: Sequence[float]) -> float | None:
    """How much a loss fell from the second quarter of a training to the third, as a share; negative where it rose.

    Not the last quarter: with a learning rate that decays to zero every loss stands still at the end, however far from
    its goal it is.

    Args:
        losses: one for each epoch, or for epochs at equal distances; on validation data, since a loss on training data
            falls as long as one likes.

    Returns:
        `1 − mean(third quarter) / mean(second quarter)`, or `None` for fewer than four epochs.

    Example:
        >>> fall([8.0, 4.0, 2.0, 1.9]), fall([1.0, 1.0])
        (0.5, None)
    """
    num_epochs = len(losses)
    if num_epochs < 4:
        return None
    first, middle, last = num_epochs // 4, num_epochs // 2, 3 * num_epochs // 4
    second, third = losses[first:middle], losses[middle:last]
    before, after = sum(second) / len(second), sum(third) / len(third)
    return 1.0 - after / before if before > 0.0 else 0.0


def was_too_short(losses: Sequence[float]) -> bool | None:
    """Whether a loss was still falling, by more than 5 % from the second quarter to the third.

    Returns:
        `None` where there are too few epochs to tell.

    Example:
        >>> was_too_short([8.0, 4.0, 2.0, 1.9]), was_too_short([8.0, 2.0, 1.95, 1.9])
        (True, False)
    """
    share = fall(losses)
    return None if share is None else share > _STILL_FALLING
