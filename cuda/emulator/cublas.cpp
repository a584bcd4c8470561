// libcublas: the products that the backend asks for, on the CPU, in the stream's order.
#include "gemm.h"

using namespace emulator;

namespace {

struct Handle {
    void *stream = nullptr;
};

} // namespace

extern "C" {

int cublasCreate_v2(void **handle) { return *handle = new Handle, BLAS_SUCCESS; }
int cublasDestroy_v2(void *handle) { return delete (Handle *)handle, BLAS_SUCCESS; }
int cublasGetVersion_v2(void *, int *version) { return *version = 130000, BLAS_SUCCESS; }
int cublasSetStream_v2(void *handle, void *stream) { return ((Handle *)handle)->stream = stream, BLAS_SUCCESS; }
int cublasSetWorkspace_v2(void *, void *workspace, size_t) { return (uintptr_t)workspace % 256 ? BLAS_INVALID_VALUE : BLAS_SUCCESS; }
int cublasSetMathMode(void *, int) { return BLAS_SUCCESS; }

int cublasGemmStridedBatchedEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a,
                               int leading_a, long long stride_a, const void *b, int type_b, int leading_b, long long stride_b,
                               const void *beta, void *c, int type_c, int leading_c, long long stride_c, int batch, int compute, int) {
    std::lock_guard<std::recursive_mutex> lock(driver_mutex());
    if (m < 0 || n < 0 || k < 0 || batch < 0 || op_a > 1 || op_b > 1) return BLAS_INVALID_VALUE;
    if (compute != COMPUTE_32F || !is_known(type_a, type_b, type_c)) return BLAS_NOT_SUPPORTED;
    Matrix left{(char *)a, type_a, op_a ? k : m, op_a ? m : k, leading_a, stride_a, op_a == 1};
    Matrix right{(char *)b, type_b, op_b ? n : k, op_b ? k : n, leading_b, stride_b, op_b == 1};
    Matrix out{(char *)c, type_c, m, n, leading_c, stride_c, false};
    for (const Matrix *x : {&left, &right, &out})
        if (x->leading < (x->rows > 1 ? x->rows : 1)) return BLAS_INVALID_VALUE;
    if (!m || !n || !batch) return BLAS_SUCCESS;
    Gemm gemm{left, right, out, m, n, k, batch, *(const float *)alpha, *(const float *)beta};
    bool taken = enqueue(((Handle *)handle)->stream, [=] { return multiply(gemm); });
    return taken ? BLAS_SUCCESS : BLAS_EXECUTION_FAILED;
}
}
