// A stand-in of the tests, with the declarations that a bundle uses: enough for g++ -fsyntax-only.
#pragma once
#include <cstddef>
#include <cstdint>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
#define TF_LITE_ENSURE_STATUS(call)         \
  do {                                      \
    const TfLiteStatus status = (call);     \
    if (status != kTfLiteOk) return status; \
  } while (0)

union TfLitePtrUnion {
  int8_t* int8;
  char* raw;
};
struct TfLiteTensor {
  TfLitePtrUnion data;
  std::size_t bytes;
};

namespace tflite {
class MicroOpResolver {};
template <unsigned int kMost>
class MicroMutableOpResolver : public MicroOpResolver {
 public:
  TfLiteStatus AddConv2D();
  TfLiteStatus AddDepthwiseConv2D();
  TfLiteStatus AddFullyConnected();
  TfLiteStatus AddMaxPool2D();
  TfLiteStatus AddMean();
  TfLiteStatus AddReshape();
};
}  // namespace tflite
