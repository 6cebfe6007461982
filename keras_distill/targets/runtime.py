"""Which runtime answers in a Keras teacher's place while it labels: its own backend, or onnxruntime.

On a processor onnxruntime is often the faster of the two. It is taken for one store as a whole, before its first shard:
a store whose shards were answered by two runtimes would not be the same bytes after a kill.
"""

import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import Teacher, TensorTree
from keras_distill.targets.manifest import Manifest
from keras_distill.targets.teacher_rows import RowOptions, row_function

RUNTIMES = ("keras", "onnxruntime", "auto")
ONNXRUNTIME = "onnxruntime"
# A conversion is waited for as long as this share of the time that labelling would take without it. So `"auto"`, where
# it comes to nothing, costs no more than that, and whether it is tried does not hang on a machine's speed alone.
_PATIENCE = 0.1
# What a conversion takes at the least, in seconds: less patience than that, and none is begun.
_SHORTEST_CONVERSION = 2.0
# How often each runtime is timed, by turns; the fastest round counts, since what else runs only adds to it.
_NUM_ROUNDS = 3


class Runtimes:
    """What may answer for a teacher, and what does.

    Args:
        wanted: one of `RUNTIMES`.
        teacher: that of `label`.
        from_logits: as in `label`.

    Attributes:
        note: why it is the one that it is, for whoever watches; empty where nothing was to be chosen.
        fastest: seconds of the fastest round of each that was timed.
    """

    def __init__(self, wanted: str, teacher: Teacher, from_logits: bool):
        self.wanted, self.teacher, self.from_logits = wanted, teacher, from_logits
        self.note = ""
        self.fastest: dict[str, float] = {}
        self._forward: Callable | None = None

    def choose(
        self,
        begun: Manifest | None,
        forward: Callable,
        batches: Sequence[TensorTree],
        num_batches: int,
        options: RowOptions,
    ) -> str | None:
        """What a store's manifest says of its runtime: `None` for the teacher's own.

        Args:
            begun: the manifest of a store that was begun; it has the say.
            forward: the teacher's rows, compiled, as from `row_function`.
            batches: the first ones, of real inputs.
            num_batches: how many there are in all.
            options: those of `row_function`.

        Raises:
            ConversionError: the teacher cannot be converted, and has to be.
            ValueError: onnxruntime answers otherwise than the teacher, and has to answer.
        """
        if self.wanted == "keras":
            return None
        if begun is not None:
            # Opened when there is something left to label.
            return ONNXRUNTIME if self.wanted == ONNXRUNTIME else begun.runtime
        if self.wanted == ONNXRUNTIME:
            self._forward = self._opened(batches, options, math.inf)
            return ONNXRUNTIME
        estimate = num_batches * _seconds(forward, batches) / len(batches)
        obstacle = self._obstacle(estimate)
        if not obstacle:
            try:
                self._forward = self._opened(batches, options, _PATIENCE * estimate)
            except Exception as error:
                # A converter or a runtime may raise anything of a model, and Keras answers all the same.
                obstacle = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if obstacle:
            self.note = f"Keras answers: {obstacle}"
            return None
        assert self._forward is not None  # it was opened
        self.fastest = _race({"keras": forward, ONNXRUNTIME: self._forward}, batches)
        ratio = self.fastest["keras"] / self.fastest[ONNXRUNTIME]
        self.note = f"{'onnxruntime' if ratio > 1.0 else 'Keras'} answers: onnxruntime takes {1 / ratio:.2f} × as long"
        return ONNXRUNTIME if ratio > 1.0 else None

    def forward_of(
        self, runtime: str | None, forward: Callable, batches: Sequence[TensorTree], options: RowOptions
    ) -> Callable:
        """The function that labels a store whose manifest says `runtime`, which another process may have chosen."""
        if runtime is None:
            return forward
        return self._forward or self._opened(batches, options, math.inf)

    def _obstacle(self, estimate: float) -> str:
        """Why this teacher is not converted, or nothing."""
        if not is_convertible(self.teacher):
            return "the teacher is no Keras model of its own"
        if not _is_on_cpu():
            return "it runs on a GPU"
        if _PATIENCE * estimate < _SHORTEST_CONVERSION:
            return f"labelling takes about {estimate:.1f} s, and a conversion would not pay"
        return ""

    def _opened(self, batches: Sequence[TensorTree], options: RowOptions, seconds: float) -> Callable:
        """The rows of the teacher's ONNX file, once that has passed the gate on the first batches."""
        from keras_distill.deploy.verify import verify
        from keras_distill.teachers.onnx import OnnxTeacher

        if not is_convertible(self.teacher):
            remedy = "Leave runtime out: what is no Keras model has a runtime of its own."
            raise ValueError(
                error_message("runtime='onnxruntime' needs a Keras model for a teacher", f"{self.teacher!r}", remedy)
            )
        conversion = _Conversion(self.teacher, batches[0], self.from_logits, seconds)
        try:
            path = conversion.result()
            for batch in batches:
                # What labels everything is held to what ships: values, answers, and whether company matters.
                found = verify(self.teacher, path, batch, from_logits=self.from_logits)
                if found.problems:
                    remedy = "Leave runtime out, and the teacher answers itself."
                    raise ValueError(
                        error_message("onnxruntime must answer as the teacher does", "; ".join(found.problems), remedy)
                    )
            # A file gives logits, whatever the teacher gives.
            options = replace(options, from_logits=True)
            return row_function(OnnxTeacher(path, num_threads=_num_threads()), batches[0], options)
        finally:
            conversion.close()


def is_convertible(teacher: Teacher) -> bool:
    """Whether a teacher is one Keras model, of which there can be an ONNX file."""
    return isinstance(teacher, keras.Model) and not hasattr(teacher, "soft_targets")


class _Conversion:
    """A teacher on its way to an ONNX file, in a process of its own, while a thread of this one waits for it.

    It is traced here and now: Keras has state of its own that two threads should not touch at once.
    """

    def __init__(self, teacher: Teacher, batch: TensorTree, from_logits: bool, seconds: float):
        from keras_distill.deploy.conversion import convert
        from keras_distill.deploy.onnx import trace_for_onnx

        began = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="keras-distill-runtime-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name) / "teacher.onnx"
        self._error: BaseException | None = None
        self._is_given_up = False
        example = keras.tree.map_structure(keras.ops.convert_to_numpy, batch)
        try:
            request, layer_names = trace_for_onnx(
                teacher, f"{self._folder.name}/saved_model", example=example, from_logits=from_logits
            )
        except BaseException:
            self._folder.cleanup()
            raise

        def work() -> None:
            try:
                convert("to_onnx", request | {"path": str(self._path)}, layer_names)
            except BaseException as error:
                self._error = error
            finally:
                if self._is_given_up:
                    self._folder.cleanup()

        # A daemon, lest a program that has given the conversion up waits for it at its end.
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        self._seconds, self._deadline = seconds, began + seconds

    def result(self) -> Path:
        """The file; raises what the converter raised, or `TimeoutError`."""
        left = self._deadline - time.monotonic()
        self._thread.join(None if math.isinf(left) else max(left, 0.0))
        if self._thread.is_alive():
            raise TimeoutError(f"the conversion takes longer than {self._seconds:.0f} s, a tenth of the labelling")
        if self._error is not None:
            raise self._error
        return self._path

    def close(self) -> None:
        """Sweeps its folder, now or when the converter has ended."""
        self._is_given_up = True
        if not self._thread.is_alive():
            self._folder.cleanup()


def _is_on_cpu() -> bool:
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return not tf.config.list_logical_devices("GPU")
    if backend == "jax":
        import jax

        return jax.default_backend() == "cpu"
    import torch

    return not torch.cuda.is_available()


def _num_threads() -> int | None:
    """How many threads whoever started this process leaves to one operation; `None` where that was not said."""
    given = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        given = str(tf.config.threading.get_intra_op_parallelism_threads() or given)
    return int(given) if given.isdigit() and int(given) else None


def _race(forwards: dict[str, Callable], batches: Sequence[TensorTree]) -> dict[str, float]:
    """Seconds of the fastest round of each, by turns, after one round to warm up."""
    fastest = dict.fromkeys(forwards, math.inf)
    for number in range(_NUM_ROUNDS + 1):
        for name, forward in forwards.items():
            seconds = _seconds(forward, batches)
            if number:
                fastest[name] = min(fastest[name], seconds)
    return fastest


def _seconds(forward: Callable, batches: Sequence[TensorTree]) -> float:
    """What some batches take, run as `label` runs them: several at once where they are TensorFlow's."""
    began = time.perf_counter()
    if hasattr(forward, "get_concrete_function"):
        with ThreadPoolExecutor(len(batches)) as threads:
            given = [threads.submit(forward.get_concrete_function(batch), batch) for batch in batches]
            rows = [each.result() for each in given]
    else:
        rows = [forward(batch) for batch in batches]
    for each in rows:
        for values in each.values():
            np.asarray(keras.ops.convert_to_numpy(values))
    return time.perf_counter() - began
