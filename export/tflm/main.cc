// Runs the golden examples on this device, and compares each answer with what TFLM gave when the bundle was made.
// Exit code 0: every answer is the same class, within kGoldenSteps. golden.h is for this check alone: leave it out of
// your product, and fill the input with round(x / kInputScale[0]) + kInputZeroPoint[0] of your own values.
#include <cstdlib>
#include <cstring>

#include "golden.h"
#include "model.h"
#include "operations.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

alignas(16) static uint8_t arena[kArenaBytes];

static int ClassOf(const int8_t* logits) {  // of one unit: class 1 where its logit is above 0
  int best = kNumLogits == 1 ? logits[0] > kOutputZeroPoint : 0;
  for (int i = 1; i < kNumLogits; ++i) best = logits[i] > logits[best] ? i : best;
  return best;
}

int main() {
  tflite::InitializeTarget();
  Operations operations;
  if (AddOperations(operations) != kTfLiteOk) return 2;
  tflite::MicroInterpreter interpreter(tflite::GetModel(kModel), operations, arena, kArenaBytes);
  if (interpreter.AllocateTensors() != kTfLiteOk) return 2;
  int num_different = 0;
  for (int example = 0; example < kNumGolden; ++example) {
    for (int input = 0; input < kNumInputs; ++input) {
      TfLiteTensor* tensor = interpreter.input(input);
      std::memcpy(tensor->data.raw, GoldenInput(input) + example * tensor->bytes, tensor->bytes);
    }
    if (interpreter.Invoke() != kTfLiteOk) return 2;
    const int8_t* logits = interpreter.output(kOutput)->data.int8;
    int steps = 0;
    for (int i = 0; i < kNumLogits; ++i) {
      const int distance = std::abs(logits[i] - kGoldenLogits[example][i]);
      steps = distance > steps ? distance : steps;
    }
    const int answer = ClassOf(logits);
    const bool same = steps <= kGoldenSteps && answer == ClassOf(kGoldenLogits[example]);
    num_different += !same;
    MicroPrintf("%s %d: %s, %d steps off", same ? "ok" : "DIFFERENT", example, kClassNames[answer], steps);
  }
  return num_different != 0;
}
