// A stand-in of the tests: see micro_mutable_op_resolver.h.
#pragma once
namespace tflite {
struct Model;
const Model* GetModel(const void* content);
}  // namespace tflite
