"""The engine that a word names."""

from keras_distill._checks import error_message
from keras_distill.scale.engine import Engine


def engine_of(engine: "Engine | str") -> Engine:
    """An engine itself, or the one that a word names: `"local"` or `"ray"`, each with as many workers as fit.

    Raises:
        ValueError: another word.
    """
    if isinstance(engine, Engine):
        return engine
    if engine == "local":
        from keras_distill.scale.processes import Processes

        return Processes()
    if engine == "ray":
        from keras_distill.scale.ray import Ray

        return Ray()
    raise ValueError(error_message("engine must be 'local', 'ray' or an engine of keras_distill.scale", repr(engine)))
