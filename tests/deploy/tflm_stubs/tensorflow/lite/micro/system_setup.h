// A stand-in of the tests: see micro_mutable_op_resolver.h.
#pragma once
namespace tflite {
void InitializeTarget();
}
