// Runs the body of mlxmtp/exactness/few_rows.metal on the host, bit for bit as written: no product is fused but by fma.
//
// The lanes of a SIMD-group run one after the other, twice. The first time `simd_sum` only takes down what each lane
// brings; the second time it returns the sums, which a lane may use as it likes as long as it brings the same values
// again. Arrays are reached through `Checked`, which counts reads and throws at an index outside.
//
// Compile with -DBODY='"/path/to/few_rows.metal"'.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

using std::fma;
using half = _Float16;

struct bfloat {
  uint16_t bits;

  explicit bfloat(float value) {
    uint32_t whole;
    std::memcpy(&whole, &value, 4);
    bits = uint16_t((whole + 0x7fff + ((whole >> 16) & 1)) >> 16); // to nearest, ties to even; finite values only
  }

  explicit operator float() const {
    const uint32_t whole = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &whole, 4);
    return value;
  }
};

struct uint3 {
  unsigned x, y, z;
};

template <typename T> struct Checked {
  T *start;
  long size;
  long *reads;

  T &operator[](long index) const {
    if (index < 0 || index >= size) {
      throw std::out_of_range("index outside its array");
    }
    ++*reads;
    return start[index];
  }
};

// The 32 lanes' sum as by exchanges with the lane 16, 8, 4, 2, 1 away; Metal does not say which order it takes.
static float exchanged(std::vector<float> lanes) {
  for (size_t away = lanes.size() / 2; away > 0; away /= 2) {
    for (size_t lane = 0; lane < away; lane++) {
      lanes[lane] += lanes[lane + away];
    }
  }
  return lanes[0];
}

struct SimdGroup {
  std::vector<std::vector<float>> brought; // [call][lane]
  bool again = false;
  size_t lane = 0, call = 0;

  float sum(float value) {
    if (!again && lane == 0) {
      brought.emplace_back();
    }
    auto &lanes = brought.at(call++);
    if (again ? std::memcmp(&lanes.at(lane), &value, 4) != 0 : lanes.size() != lane) {
      throw std::logic_error("the lanes did not run in step");
    }
    if (!again) {
      lanes.push_back(value);
      return 0;
    }
    return exchanged(lanes);
  }
};

struct Call {
  int bits, group, wide, fused, inputs, outputs;
  const void *x;
  const uint32_t *w;
  const void *scales, *biases;
  void *y;
  long reads;       // of w, in both runs
  long other_reads;
};

template <typename T, int ROWS, int OUTPUTS>
static void run_lane(SimdGroup &group, Call &call, uint3 thread_position_in_grid, unsigned thread_index_in_simdgroup) {
  const int BITS = call.bits, GROUP = call.group, LANE = call.wide;
  const bool FUSED = call.fused != 0;
  const long rows = ROWS, inputs = call.inputs, outs = call.outputs;
  const Checked<const T> x{(const T *)call.x, rows * inputs, &call.other_reads};
  const Checked<const uint32_t> w{call.w, outs * inputs * BITS / 32, &call.reads};
  const Checked<const T> scales{(const T *)call.scales, outs * inputs / GROUP, &call.other_reads};
  const Checked<const T> biases{(const T *)call.biases, outs * inputs / GROUP, &call.other_reads};
  const Checked<T> y{(T *)call.y, rows * outs, &call.other_reads};
  const int x_shape[2] = {ROWS, call.inputs};
  const int w_shape[2] = {call.outputs, call.inputs * BITS / 32};
  const auto simd_sum = [&group](float value) { return group.sum(value); };
#include BODY
}

template <typename T, int ROWS, int OUTPUTS> static void run(Call &call, unsigned simd_groups) {
  for (unsigned position = 0; position < simd_groups; position++) {
    SimdGroup group;
    for (int pass = 0; pass < 2; pass++) {
      group.again = pass == 1;
      size_t calls = 0;
      for (unsigned lane = 0; lane < 32; lane++) {
        group.lane = lane;
        group.call = 0;
        run_lane<T, ROWS, OUTPUTS>(group, call, uint3{lane, position, 0}, lane);
        if (lane > 0 && group.call != calls) {
          throw std::logic_error("the lanes did not run in step");
        }
        calls = group.call;
      }
    }
  }
}

template <typename T> static bool run_rows(Call &call, int rows, int each, unsigned simd_groups) {
  switch (10 * rows + each) {
  case 14: run<T, 1, 4>(call, simd_groups); return true;
  case 24: run<T, 2, 4>(call, simd_groups); return true;
  case 34: run<T, 3, 4>(call, simd_groups); return true;
  case 44: run<T, 4, 4>(call, simd_groups); return true;
  case 52: run<T, 5, 2>(call, simd_groups); return true;
  case 62: run<T, 6, 2>(call, simd_groups); return true;
  case 72: run<T, 7, 2>(call, simd_groups); return true;
  case 82: run<T, 8, 2>(call, simd_groups); return true;
  }
  return false;
}

// How often words of w were read; -1 where rows and outputs were not foreseen here, -2 where the body went astray.
extern "C" long few_rows(int type, int rows, int each, int bits, int group, int wide, int fused,
                         unsigned simd_groups, int inputs, int outputs, const void *x, const uint32_t *w, const void *scales, const void *biases, void *y) {
  Call call{bits, group, wide, fused, inputs, outputs, x, w, scales, biases, y, 0, 0};
  try {
    const bool known = type == 0   ? run_rows<half>(call, rows, each, simd_groups)
                       : type == 1 ? run_rows<bfloat>(call, rows, each, simd_groups)
                                   : run_rows<float>(call, rows, each, simd_groups);
    return known ? call.reads / 2 : -1;
  } catch (const std::exception &) {
    return -2;
  }
}
