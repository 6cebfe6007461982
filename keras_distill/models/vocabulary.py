"""Whether a model has a vector for every token that its data may hold.

TensorFlow answers an id beyond the table with an error of its own on a CPU, and with zeros elsewhere.
"""

import keras

from keras_distill._checks import error_message


def check_vocabulary(model: keras.Model, vocabulary_size: int, who: str) -> None:
    """Raises `ValueError` where an `Embedding` that reads a model's input has fewer rows than there are token ids.

    Args:
        model: of one input, token ids; of several inputs, and of models without a graph, nothing is known.
        vocabulary_size: how many ids there are.
        who: the model, for the error: "student".

    Example:
        >>> from keras_distill.data import networks
        >>> check_vocabulary(networks.text_bag(8, 100, 3), 90, "student")
        >>> check_vocabulary(networks.text_bag(8, 100, 3), 120, "student")
        Traceback (most recent call last):
        ValueError: the student must have a vector for each of 120 tokens; got an Embedding 'vectors' of 100. Give ...
    """
    if len(getattr(model, "inputs", None) or ()) != 1:
        return
    for layer in model.layers:
        if isinstance(layer, keras.layers.Embedding) and _reads(layer, model) and layer.input_dim < vocabulary_size:
            received = f"an Embedding {layer.name!r} of {layer.input_dim:,}"
            remedy = "Give the tokenizer.json that it was trained with (--tokenizer), or build it for this one."
            expectation = f"the {who} must have a vector for each of {vocabulary_size:,} tokens"
            raise ValueError(error_message(expectation, received, remedy))


def _reads(layer: keras.layers.Layer, model: keras.Model) -> bool:
    return any(layer.input is tensor for tensor in model.inputs)
