// Attaches the kernel of fastdiff::conv1x1; its schema stands in fastdiff/ops.
#include "../common/native_calls.h"
#include "../direct_convolution/call.h"

namespace fastdiff {
namespace {

CallCounter calls("conv1x1.cpu");

Tensor conv1x1(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor packed, MaybeTensor residual,
               double scale) {
  if (packed) {
    if (auto y = direct_convolution(x, weight.size(0), bias, *packed, residual, scale, false, 1)) {
      calls.add();
      return *y;
    }
  }
  return reference<1>("fastdiff::conv1x1", x, weight, bias, packed, residual, scale)[0];
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("conv1x1", TORCH_BOX(&fastdiff::conv1x1));
}
