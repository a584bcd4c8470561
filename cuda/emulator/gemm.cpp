// Matrix products on the CPU: each sum in f32, in an order that the number of splits decides, rounded once at its end.
#include "gemm.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace emulator {

namespace {

char *place(const Matrix &m, long long batch, int row, int column) {
    return m.data + ((size_t)(batch * m.stride) + (size_t)column * (size_t)m.leading + (size_t)row) * size_of(m.type);
}

float load(const char *at, int type) {
    if (type == R_32F) return *(const float *)at;
    uint32_t bits = (uint32_t)(*(const uint16_t *)at) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

void store(char *at, int type, float x) {
    if (type == R_32F) {
        *(float *)at = x;
        return;
    }
    uint32_t b;
    memcpy(&b, &x, 4);
    *(uint16_t *)at = (b & 0x7fffffffu) > 0x7f800000u ? (uint16_t)0x7fff : (uint16_t)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}

/// Bytes of the batch's last matrix, from the first element of the first one.
size_t extent(const Matrix &m, int batch) {
    return ((size_t)((batch - 1) * m.stride) + (size_t)(m.columns - 1) * (size_t)m.leading + (size_t)m.rows) * size_of(m.type);
}

float gelu(float x) { return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }

} // namespace

size_t size_of(int type) { return type == R_32F ? 4 : 2; }

bool is_known(int type_a, int type_b, int type_d) {
    if (type_a != type_b) return false;
    return (type_a == R_32F && type_d == R_32F) || (type_a == R_16BF && (type_d == R_16BF || type_d == R_32F));
}

std::string multiply(const Gemm &p) {
    const auto &[a, b, d, m, n, k, batch, alpha, beta, splits, bias, gelu_last, before] = p;
    for (const Matrix *x : {&a, &b, &d})
        if (!is_device_range(x->data, extent(*x, batch))) return "cuBLAS: a matrix reaches beyond its allocation: " + describe(x->data);
    if (bias && !is_device_range(bias, (size_t)m * size_of(d.type))) return "cuBLAS: the bias reaches beyond its allocation: " + describe(bias);
    if (gelu_last && !is_device_range(before.data, extent(before, batch)))
        return "cuBLAS: the auxiliary output reaches beyond its allocation: " + describe(before.data);
    // Rows of op(A)^T, so that the inner loop runs along neighbours.
    std::vector<float> left((size_t)k * m), column(m), part(m);
    for (long long i = 0; i < batch; i++) {
        for (int q = 0; q < k; q++)
            for (int row = 0; row < m; row++) left[(size_t)q * m + row] = load(a.transposed ? place(a, i, q, row) : place(a, i, row, q), a.type);
        for (int j = 0; j < n; j++) {
            std::fill(column.begin(), column.end(), 0.0f);
            for (int split = 0; split < splits; split++) {
                std::fill(part.begin(), part.end(), 0.0f);
                for (int q = (int)((long long)k * split / splits); q < (int)((long long)k * (split + 1) / splits); q++) {
                    float factor = load(b.transposed ? place(b, i, j, q) : place(b, i, q, j), b.type);
                    const float *from = &left[(size_t)q * m];
                    for (int row = 0; row < m; row++) part[row] += factor * from[row];
                }
                for (int row = 0; row < m; row++) column[row] += part[row];
            }
            for (int row = 0; row < m; row++) {
                // Without beta, D is not read.
                float sum = alpha * column[row] + (beta == 0 ? 0 : beta * load(place(d, i, row, j), d.type));
                if (bias) sum += load(bias + (size_t)row * size_of(d.type), d.type);
                if (gelu_last) store(place(before, i, row, j), before.type, sum);
                store(place(d, i, row, j), d.type, gelu_last ? gelu(sum) : sum);
            }
        }
    }
    for (long long i = 0; i < batch; i++)
        for (int j = 0; j < n; j++) {
            mark_initialised(place(d, i, 0, j), (size_t)m * size_of(d.type));
            if (gelu_last) mark_initialised(place(before, i, 0, j), (size_t)m * size_of(before.type));
        }
    return "";
}

} // namespace emulator
