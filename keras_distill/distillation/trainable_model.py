"""`TrainableModel`: Keras's `fit`, `evaluate` and `predict` spelled out, as editors and type checkers read them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import keras

from keras_distill._keras_internals import build_optimizer, forget_compiled_data
from keras_distill._types import ArrayLike, Data, TensorTree
from keras_distill.distillation.guards import check_labels_are_numbers

Callbacks: TypeAlias = Sequence[keras.callbacks.Callback] | keras.callbacks.CallbackList | None


class TrainableModel(keras.Model):
    """A Keras model that checks what `fit` is given, and brings callbacks of its own."""

    def fit(
        self,
        x: Data = None,
        y: Data = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Callbacks = None,
        validation_split: float = 0.0,
        validation_data: Data = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: ArrayLike | None = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] = 1,
    ) -> keras.callbacks.History:
        """Trains; the arguments are those of `keras.Model.fit`, in its order."""
        check_labels_are_numbers(x, y)
        x, y, sample_weight = self._without_strings(x, y, sample_weight)
        if isinstance(validation_data, (tuple, list)):
            check_labels_are_numbers(None, validation_data[1] if len(validation_data) > 1 else None)
            validation_data = keras.utils.pack_x_y_sample_weight(*self._without_strings(*validation_data))
        y, class_weight, sample_weight = self._check_fit(x, y, class_weight, sample_weight)
        build_optimizer(self)
        with self._unharmed_by_errors():
            return super().fit(
                x,
                y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=_with_callbacks(callbacks, self._own_callbacks()),
                validation_split=validation_split,
                validation_data=validation_data,
                shuffle=shuffle,
                class_weight=class_weight,
                sample_weight=sample_weight,
                initial_epoch=initial_epoch,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size,
                validation_freq=validation_freq,
            )

    def evaluate(
        self,
        x: Data = None,
        y: Data = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: ArrayLike | None = None,
        steps: int | None = None,
        callbacks: Callbacks = None,
        return_dict: bool = False,
        _use_cached_eval_dataset: bool = False,
    ) -> float | list[float] | dict[str, float]:
        """Measures the student; the arguments are those of `keras.Model.evaluate`, in its order."""
        check_labels_are_numbers(x, y)
        x, y, sample_weight = self._without_strings(x, y, sample_weight)
        # The last one is what Keras's `fit` hands to the evaluations between its epochs.
        with self._unharmed_by_errors():
            return super().evaluate(
                x,
                y,
                batch_size=batch_size,
                verbose=verbose,
                sample_weight=sample_weight,
                steps=steps,
                callbacks=callbacks,
                return_dict=return_dict,
                _use_cached_eval_dataset=_use_cached_eval_dataset,
            )

    def predict(
        self,
        x: Data,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Callbacks = None,
    ) -> TensorTree:
        """The student's own output for each example; the arguments are those of `keras.Model.predict`."""
        x, _, _ = self._without_strings(x)
        return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, callbacks=callbacks)

    @contextmanager
    def _unharmed_by_errors(self) -> Iterator[None]:
        """Forgets what Keras had compiled for data that were refused, so that the next `fit` starts afresh.

        A `tf.function` that fails at its first call cannot be called again, and Keras chooses what "accuracy" means by
        the first labels that it sees.
        """
        try:
            yield
        except BaseException:
            self.train_function = self.test_function = None
            forget_compiled_data(self)
            raise

    def _check_fit(
        self, x: Data, y: Data, class_weight: Mapping[int, float] | None, sample_weight: ArrayLike | None
    ) -> tuple[Data, Mapping[int, float] | None, ArrayLike | None]:
        """`y`, `class_weight` and `sample_weight` as Keras is to have them."""
        return y, class_weight, sample_weight

    def _without_strings(self, x: Data, y: Data = None, sample_weight: Data = None) -> tuple[Data, Data, Data]:
        """The three, texts among the inputs made what the models read."""
        return x, y, sample_weight

    def _own_callbacks(self) -> list[keras.callbacks.Callback]:
        """What runs beside the caller's callbacks."""
        return []


def _with_callbacks(callbacks: Callbacks, ours: list[keras.callbacks.Callback]) -> Callbacks:
    """Ours among the caller's: first in a list, last in a `CallbackList`, which is extended."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        for callback in ours:
            callbacks.append(callback)
        return callbacks
    return [*ours, *keras.tree.flatten(callbacks or [])]
