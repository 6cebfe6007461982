"""A file for microcontrollers as C++: the model as an array, its operations, and the golden examples to check it with.

What runs them is the kit's `tflm/main.cc`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._kit import kit_module
from keras_distill.deploy.micro import method_of
from keras_distill.deploy.tflm import MicroFacts

_ORIGIN = "// Made by keras-distill ship; manifest.json says of which student.\n"
_C_TYPES = {"int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "int32": "int32_t", "int64": "int64_t",
            "float32": "float", "bool": "bool"}  # fmt: skip
_WIDTH = 116


def write_source(
    folder: Path,
    path: Path,
    facts: MicroFacts,
    golden: Mapping[str, np.ndarray],
    *,
    answer: str,
    class_names: Sequence[str],
    temperature: float,
    tolerance: float,
) -> None:
    """Writes `model.h`, `model.cc`, `operations.h` and `golden.h` into a folder.

    Args:
        folder: that is there.
        path: the `tflm.tflite` file.
        facts: of it.
        golden: inputs by name, `(num_golden, ...)`, as Keras takes them.
        answer: the output of the logits.
        class_names: in the order of the logits.
        temperature: divisor of the logits before the softmax.
        tolerance: how far a logit may lie from its golden value, in logits.
    """
    kit = kit_module()
    artifact = kit.open_artifact(path)
    place = artifact.output_names.index(answer)
    output = artifact.output_steps[place]
    if output is None:
        raise ValueError(f"the logits of {path.name} must be int8; got values without a scale. Convert it again.")
    logits = np.round(artifact.run(golden)[answer] / output[0]).astype(np.int64) + output[1]
    texts = {
        "model.h": _header(artifact, facts, output, place, class_names, temperature, logits.shape[-1]),
        "model.cc": _model(path.read_bytes(), class_names),
        "operations.h": _operations(facts.operations),
        "golden.h": _golden(artifact, golden, logits, max(1, round(tolerance / float(output[0])))),
    }
    for name, text in texts.items():
        (folder / name).write_text(_ORIGIN + text, encoding="ascii")


def _header(
    artifact: Any,
    facts: MicroFacts,
    output: tuple[np.float32, int],
    place: int,
    class_names: Sequence[str],
    temperature: float,
    num_logits: int,
) -> str:
    steps = [each or (np.float32(0), 0) for each in artifact.input_steps]
    return f"""#ifndef KERAS_DISTILL_MODEL_H_
#define KERAS_DISTILL_MODEL_H_

#include <cstddef>
#include <cstdint>

alignas(16) extern const unsigned char kModel[];
extern const std::size_t kModelBytes;

// The smallest arena that the interpreter ran in (tflite-micro {facts.version}, plain kernels, pointers of
// 8 bytes). On a chip of 32 bits less will do; kernels made for a chip, such as CMSIS-NN's, may ask for some more.
constexpr std::size_t kArenaBytes = {facts.arena_bytes};

// An input's value x is the step round(x / scale) + zero point, kept to -128 ... 127; where the scale is 0, it is
// itself. A logit is (step - kOutputZeroPoint) * kOutputScale; divided by kTemperature it goes into the softmax.
constexpr int kNumInputs = {len(steps)};
constexpr float kInputScale[] = {{{", ".join(_float(float(scale)) for scale, _ in steps)}}};
constexpr int kInputZeroPoint[] = {{{", ".join(str(zero) for _, zero in steps)}}};
constexpr int kOutput = {place};
constexpr int kNumLogits = {num_logits};
constexpr float kOutputScale = {_float(float(output[0]))};
constexpr int kOutputZeroPoint = {output[1]};
constexpr float kTemperature = {_float(temperature)};

constexpr int kNumClasses = {len(class_names)};
extern const char* const kClassNames[];

#endif  // KERAS_DISTILL_MODEL_H_
"""


def _model(content: bytes, class_names: Sequence[str]) -> str:
    names = "\n".join(f"    {_text(name)}," for name in class_names)
    return f"""#include "model.h"

alignas(16) const unsigned char kModel[] = {{
{_lines(f"0x{byte:02x}" for byte in content)}
}};
const std::size_t kModelBytes = sizeof(kModel);

const char* const kClassNames[] = {{
{names}
}};
"""


def _operations(operations: Sequence[str]) -> str:
    calls = "\n".join(f"  TF_LITE_ENSURE_STATUS(operations.{method_of(name)}());" for name in operations)
    return f"""#ifndef KERAS_DISTILL_OPERATIONS_H_
#define KERAS_DISTILL_OPERATIONS_H_

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

// The operations of kModel, and none beside them: what is not named is not linked.
using Operations = tflite::MicroMutableOpResolver<{len(operations)}>;

inline TfLiteStatus AddOperations(Operations& operations) {{
{calls}
  return kTfLiteOk;
}}

#endif  // KERAS_DISTILL_OPERATIONS_H_
"""


def _golden(artifact: Any, golden: Mapping[str, np.ndarray], logits: np.ndarray, num_steps: int) -> str:
    kit = kit_module()
    arrays, cases = [], []
    for place, (name, steps) in enumerate(zip(artifact.input_names, artifact.input_steps, strict=True)):
        values = np.ascontiguousarray(kit.as_steps(golden[name], steps))
        kind = _C_TYPES[values.dtype.name]
        arrays.append(f"const {kind} kGoldenInput{place}[] = {{\n{_lines(map(_number, values.ravel()))}\n}};")
        cases.append(f"reinterpret_cast<const char*>(kGoldenInput{place})")
    rows = "\n".join(f"    {{{', '.join(map(str, row))}}}," for row in logits)
    inputs = "\n".join(arrays)
    return f"""#ifndef KERAS_DISTILL_GOLDEN_H_
#define KERAS_DISTILL_GOLDEN_H_

#include <cstdint>

#include "model.h"

// Examples of the test set, and what TFLM answered; another chip's kernels may round otherwise, by so many steps.
constexpr int kNumGolden = {len(logits)};
constexpr int kGoldenSteps = {num_steps};
const int8_t kGoldenLogits[][kNumLogits] = {{
{rows}
}};
{inputs}

// All examples of an input, one after another.
inline const char* GoldenInput(int input) {{
  static const char* const inputs[] = {{{", ".join(cases)}}};
  return inputs[input];
}}

#endif  // KERAS_DISTILL_GOLDEN_H_
"""


def _lines(words: Iterator[str] | Any) -> str:
    """Words with commas between them, in lines."""
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > _WIDTH:
            lines.append(line)
            line = "   "
        line += f" {word},"
    return "\n".join([*lines, line])


def _number(value: Any) -> str:
    return _float(float(value)) if isinstance(value, np.floating) else str(int(value))


def _float(value: float) -> str:
    """A float32 literal that reads back as the same number."""
    text = np.format_float_scientific(np.float32(value), unique=True, trim="0")
    return f"{text}f"


def _text(text: str) -> str:
    """A string literal of plain ASCII: other bytes of UTF-8 by octal numbers, of which three digits are one byte."""
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{plain}"'
