"""A conversion in a process of its own.

Converters crash (a full-int8 GRU ends in a segmentation fault), write to the log where they should raise, and keep
gigabytes. So each runs in `worker.py`, in a process of its own, and whatever happens there comes back as a file or as
a `ConversionError` that names the layer and the remedy. `warm.py` spares that process its imports where it can.
"""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from keras_distill.deploy.warm import WARM_PROCESS, NotServed, environment

TIME_LIMIT_S = 1800


class ConversionError(ValueError):
    """A model that a converter refused, garbled or died of."""


def convert(job: str, request: dict[str, Any], layer_names: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """Runs one job of `worker.py` in a process of its own and returns its reply.

    Args:
        job: a name in `worker.JOBS`.
        request: the job's arguments; paths as strings, all JSON.
        layer_names: the model's layers, so that an error can name one.

    Raises:
        ConversionError: the converter failed, wrote an invalid file, crashed or ran out of time.
    """
    with tempfile.TemporaryDirectory(prefix="keras-distill-conversion-") as folder:
        request_path, reply_path = Path(folder) / "request.json", Path(folder) / "reply.json"
        request_path.write_text(json.dumps({"job": job, "arguments": request, "layer_names": list(layer_names)}))
        try:
            process = _run(request_path, reply_path)
        except subprocess.TimeoutExpired:
            raise ConversionError(
                f"{job} must end within {TIME_LIMIT_S} s; it did not. Convert a smaller model."
            ) from None
        reply: dict[str, Any] = {"stage": "starting"}
        if reply_path.is_file():
            reply = json.loads(reply_path.read_text())
    if process.returncode == 0 and "result" in reply:
        return reply["result"]
    raise ConversionError(reply.get("error") or _crash(job, process, reply))


def _run(request_path: Path, reply_path: Path) -> subprocess.CompletedProcess[str]:
    try:
        return WARM_PROCESS.run({"request": str(request_path), "reply": str(reply_path)}, TIME_LIMIT_S)
    except NotServed:
        command = [sys.executable, "-P", "-m", "keras_distill.deploy.worker", str(request_path), str(reply_path)]
        return subprocess.run(
            command,
            env=environment(),
            cwd=request_path.parent,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
        )


def _crash(job: str, process: subprocess.CompletedProcess, reply: dict[str, Any]) -> str:
    code = process.returncode
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    suspects = reply.get("suspects") or []
    message = f"{job} must end well; the converter died of {cause} while {reply.get('stage')}."
    if suspects:
        message += f" Layers that converters are known to die of: {', '.join(suspects)}."
    else:
        tail = [line for line in process.stderr.strip().splitlines() if line.strip()][-3:]
        message += f" Its last words: {' / '.join(tail) or 'none'}."
    return message + " Ship this model in another precision or for another runtime, or replace the layer."
