// y[r, o] = sum over k of x[r, k] * (scale[o, g] * q[o, k] + bias[o, g]) for ROWS rows, each with the bits it has alone.
//
// The body of a function: MLX writes the signature. Inputs x [ROWS, K] of T, w [N, K * BITS / 32] packed, scales and
// biases [N, K / GROUP] of T; output y [ROWS, N] of T. Also compiled for the host by tests/exactness: keep to what both
// languages know, name no type of Metal's, and reach every array by an index from its start.
//
// A SIMD-group owns OUTPUTS outputs. Of each block of 32 * LANE inputs a lane owns LANE in a row, which lie in one
// group. It adds x * q over them, then scale * that + (sum of x) * bias to its total; the 32 totals are added last.
// Nothing that a row adds, nor when, depends on the other rows. The weights are read and unpacked once for all rows,
// four inputs at a time, so that few values are alive at once. The expressions are as they stand because Metal's
// compiler fuses a product with the sum it goes into: other expressions, other bits. With FUSED the fused products are
// written out, in the order in which LLVM fuses these expressions: the first product goes into the sum.

const int K = x_shape[1];
const int N = w_shape[0];
const int words = K * BITS / 32;
const int groups = K / GROUP;
const int lane = int(thread_index_in_simdgroup);
const int first = int(thread_position_in_grid.y) * OUTPUTS;
if (first >= N) {
  return;
}

// Past the last output the last one is computed again, and not stored.
int outputs[OUTPUTS];
#pragma unroll
for (int o = 0; o < OUTPUTS; o++) {
  outputs[o] = first + o < N ? first + o : N - 1;
}

float totals[ROWS][OUTPUTS] = {};

for (int k = lane * LANE; k < K; k += 32 * LANE) {
  float dots[ROWS][OUTPUTS] = {};
  float sums[ROWS] = {};

  for (int part = 0; part < LANE * BITS / 32; part++) {
    uint32_t packed[OUTPUTS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
      packed[o] = w[outputs[o] * words + k * BITS / 32 + part];
    }

#pragma unroll
    for (int four = 0; four < 8 / BITS; four++) {
      const int at = k + part * (32 / BITS) + 4 * four;

      // Four bits stay where they are in their 16, and x is divided by as much: an exact shift, saved.
      float q[OUTPUTS][4];
#pragma unroll
      for (int o = 0; o < OUTPUTS; o++) {
        const uint32_t bits = BITS == 4 ? packed[o] >> (16 * four) : packed[o];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          q[o][i] = BITS == 4 ? float(bits & (15u << (4 * i))) : float((bits >> (8 * i)) & 255u);
        }
      }

#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          v[i] = float(x[r * K + at + i]);
        }
        if (BITS == 4) {
          sums[r] += v[0] + v[1] + v[2] + v[3];
          v[1] *= 0.0625f;
          v[2] *= 0.00390625f;
          v[3] *= 0.000244140625f;
#pragma unroll
          for (int o = 0; o < OUTPUTS; o++) {
            if (FUSED) {
              const float two = fma(v[0], q[o][0], v[1] * q[o][1]);
              dots[r][o] += fma(v[3], q[o][3], fma(v[2], q[o][2], two));
            } else {
              dots[r][o] += v[0] * q[o][0] + v[1] * q[o][1] + v[2] * q[o][2] + v[3] * q[o][3];
            }
          }
        } else {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            sums[r] += v[i];
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) {
              if (FUSED) {
                dots[r][o] = fma(v[i], q[o][i], dots[r][o]);
              } else {
                dots[r][o] += v[i] * q[o][i];
              }
            }
          }
        }
      }
    }
  }

#pragma unroll
  for (int o = 0; o < OUTPUTS; o++) {
    const float scale = float(scales[outputs[o] * groups + k / GROUP]);
    const float shift = float(biases[outputs[o] * groups + k / GROUP]);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (FUSED) {
        totals[r][o] += fma(scale, dots[r][o], sums[r] * shift);
      } else {
        totals[r][o] += scale * dots[r][o] + sums[r] * shift;
      }
    }
  }
}

#pragma unroll
for (int r = 0; r < ROWS; r++) {
#pragma unroll
  for (int o = 0; o < OUTPUTS; o++) {
    const float total = simd_sum(totals[r][o]);
    if (lane == 0 && first + o < N) {
      y[r * N + first + o] = static_cast<T>(total);
    }
  }
}
