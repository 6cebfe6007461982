// A stand-in of the tests: see micro_mutable_op_resolver.h.
#pragma once
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

namespace tflite {
struct Model;
class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& operations, uint8_t* arena, std::size_t arena_bytes);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor* input(std::size_t index);
  TfLiteTensor* output(std::size_t index);
};
}  // namespace tflite
