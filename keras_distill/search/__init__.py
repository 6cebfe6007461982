"""Searches whose trials read one store: nothing is labelled twice. The public names load on first use."""

from typing import TYPE_CHECKING

from keras_distill._lazy import lazy_names

if TYPE_CHECKING:
    from keras_distill.search.compressing import Progress, compress
    from keras_distill.search.compression import Compression
    from keras_distill.search.training import Recipe
    from keras_distill.search.trials import Trial
    from keras_distill.search.tuning import Tuned, tune
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "Compression": "compression",
            "Progress": "compressing",
            "Recipe": "training",
            "Trial": "trials",
            "Tuned": "tuning",
            "compress": "compressing",
            "tune": "tuning",
        },
    )

__all__ = ["Compression", "Progress", "Recipe", "Trial", "Tuned", "compress", "tune"]


def __dir__() -> list[str]:
    return __all__
