"""Past one machine, on engines that others maintain: processes here, Ray on a cluster, devices through Keras.

The names load on first use: an engine that is not used costs nothing.
"""

from typing import TYPE_CHECKING

from keras_distill._lazy import lazy_names

if TYPE_CHECKING:
    from keras_distill.scale.devices import distributed
    from keras_distill.scale.engine import Engine, Job, WorkersLostError
    from keras_distill.scale.models import make_models
    from keras_distill.scale.processes import Processes
    from keras_distill.scale.ray import Ray
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "Engine": "engine",
            "Job": "engine",
            "Processes": "processes",
            "Ray": "ray",
            "WorkersLostError": "engine",
            "distributed": "devices",
            "make_models": "models",
        },
    )

__all__ = ["Engine", "Job", "Processes", "Ray", "WorkersLostError", "distributed", "make_models"]
