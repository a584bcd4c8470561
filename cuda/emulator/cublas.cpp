// libcublas: the products that the backend asks for, on the CPU, in the stream's order.
#include <cstring>
#include <vector>

#include "driver.h"

using namespace emulator;

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15, EXECUTION_FAILED = 13 };
enum Type { R_32F = 0, R_16BF = 14 };
constexpr int COMPUTE_32F = 68;

struct Handle {
    void *stream = nullptr;
};

struct Matrix {
    char *data;
    int type;
    int rows, columns, leading; // column-major as stored
    long long stride;
    bool transposed;
};

size_t size_of(int type) { return type == R_32F ? 4 : 2; }

float read(const Matrix &m, long long batch, int row, int column) {
    const char *at = m.data + ((size_t)(batch * m.stride) + (size_t)column * (size_t)m.leading + (size_t)row) * size_of(m.type);
    if (m.type == R_32F) return *(const float *)at;
    uint32_t bits = (uint32_t)(*(const uint16_t *)at) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

void write(const Matrix &m, long long batch, int row, int column, float x) {
    char *at = m.data + ((size_t)(batch * m.stride) + (size_t)column * (size_t)m.leading + (size_t)row) * size_of(m.type);
    if (m.type == R_32F) {
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

std::string multiply(Matrix a, Matrix b, Matrix c, int m, int n, int k, float alpha, float beta, int batch) {
    for (const Matrix *x : {&a, &b, &c})
        if (!is_device_range(x->data, extent(*x, batch))) return "cuBLAS: a matrix reaches beyond its allocation: " + describe(x->data);
    // Rows of op(A)^T, so that the inner loop runs along neighbours.
    std::vector<float> left((size_t)k * m), column(m);
    for (long long i = 0; i < batch; i++) {
        for (int p = 0; p < k; p++)
            for (int row = 0; row < m; row++) left[(size_t)p * m + row] = a.transposed ? read(a, i, p, row) : read(a, i, row, p);
        for (int j = 0; j < n; j++) {
            std::fill(column.begin(), column.end(), 0.0f);
            for (int p = 0; p < k; p++) {
                float factor = b.transposed ? read(b, i, j, p) : read(b, i, p, j);
                const float *from = &left[(size_t)p * m];
                for (int row = 0; row < m; row++) column[row] += factor * from[row];
            }
            // Without beta, C is not read.
            for (int row = 0; row < m; row++) write(c, i, row, j, alpha * column[row] + (beta == 0 ? 0 : beta * read(c, i, row, j)));
        }
    }
    for (long long i = 0; i < batch; i++)
        for (int j = 0; j < n; j++)
            mark_initialised(c.data + ((size_t)(i * c.stride) + (size_t)j * (size_t)c.leading) * size_of(c.type), (size_t)m * size_of(c.type));
    return "";
}

} // namespace

extern "C" {

int cublasCreate_v2(void **handle) { return *handle = new Handle, SUCCESS; }
int cublasDestroy_v2(void *handle) { return delete (Handle *)handle, SUCCESS; }
int cublasGetVersion_v2(void *, int *version) { return *version = 130000, SUCCESS; }
int cublasSetStream_v2(void *handle, void *stream) { return ((Handle *)handle)->stream = stream, SUCCESS; }
int cublasSetWorkspace_v2(void *, void *workspace, size_t) { return (uintptr_t)workspace % 256 ? INVALID_VALUE : SUCCESS; }
int cublasSetMathMode(void *, int) { return SUCCESS; }

int cublasGemmStridedBatchedEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a,
                               int leading_a, long long stride_a, const void *b, int type_b, int leading_b, long long stride_b,
                               const void *beta, void *c, int type_c, int leading_c, long long stride_c, int batch, int compute, int) {
    std::lock_guard<std::recursive_mutex> lock(driver_mutex());
    if (m < 0 || n < 0 || k < 0 || batch < 0 || op_a > 1 || op_b > 1) return INVALID_VALUE;
    if (compute != COMPUTE_32F || type_a != type_b) return NOT_SUPPORTED;
    bool known = (type_a == R_32F && type_c == R_32F) || (type_a == R_16BF && (type_c == R_16BF || type_c == R_32F));
    if (!known) return NOT_SUPPORTED;
    Matrix left{(char *)a, type_a, op_a ? k : m, op_a ? m : k, leading_a, stride_a, op_a == 1};
    Matrix right{(char *)b, type_b, op_b ? n : k, op_b ? k : n, leading_b, stride_b, op_b == 1};
    Matrix out{(char *)c, type_c, m, n, leading_c, stride_c, false};
    for (const Matrix *x : {&left, &right, &out})
        if (x->leading < (x->rows > 1 ? x->rows : 1)) return INVALID_VALUE;
    if (!m || !n || !batch) return SUCCESS;
    float scale = *(const float *)alpha, old = *(const float *)beta;
    bool taken = enqueue(((Handle *)handle)->stream, [=] { return multiply(left, right, out, m, n, k, scale, old, batch); });
    return taken ? SUCCESS : EXECUTION_FAILED;
}
}
