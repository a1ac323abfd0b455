#include "attend/tensor/dlpack.h"

#include <gtest/gtest.h>

#include "attend/tensor/error.h"

namespace attend {
namespace {

TEST(DlPack, AnArrayComesBackAsItWas) {
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kBool}) {
    Array array = make_array(type, 3, {2, 3, 5});
    const void* data = array.view.data;
    DLManagedTensor* managed = to_dlpack(std::move(array));
    const View view = from_dlpack(managed->dl_tensor);
    EXPECT_EQ(view.data, data);
    EXPECT_EQ(view.type, type);
    EXPECT_EQ(view.rank, 3);
    EXPECT_EQ(view.count(), 30);
    EXPECT_EQ(view.stride[0], 15);
    managed->deleter(managed);
  }
}

TEST(DlPack, StridesAndOffsetsCarryOver) {
  float x[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  int64_t shape[] = {2, 3}, strides[] = {1, 4};
  DLTensor tensor{x, {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, strides, 8};
  const View view = from_dlpack(tensor);
  EXPECT_EQ(*view.at<float>({1, 2}), 11);
  tensor.strides = nullptr;
  EXPECT_EQ(*from_dlpack(tensor).at<float>({1, 0}), 5);
}

TEST(DlPack, RefusesWhatAViewCanNotBe) {
  float x[4] = {};
  int64_t shape[] = {1, 1, 1, 1, 1, 1, 4};
  const DLTensor good{x, {kDLCPU, 0}, 6, {kDLFloat, 32, 1}, shape, nullptr, 0};
  EXPECT_NO_THROW(from_dlpack(good));
  DLTensor bad = good;
  bad.device.device_type = kDLCUDA;
  EXPECT_THROW(from_dlpack(bad), Error);
  bad = good;
  bad.ndim = 7;
  EXPECT_THROW(from_dlpack(bad), Error);
  bad = good;
  bad.dtype.lanes = 2;
  EXPECT_THROW(from_dlpack(bad), Error);
  bad = good;
  bad.data = nullptr;
  EXPECT_THROW(from_dlpack(bad), Error);
  shape[0] = -1;
  EXPECT_THROW(from_dlpack(good), Error);
}

}  // namespace
}  // namespace attend
