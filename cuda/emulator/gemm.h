// Matrix products on the CPU, for cuBLAS and cuBLASLt.
#pragma once
#include "driver.h"

namespace emulator {

/// cublasStatus_t, as far as the emulated libraries give it.
enum Status { BLAS_SUCCESS = 0, BLAS_INVALID_VALUE = 7, BLAS_EXECUTION_FAILED = 13, BLAS_NOT_SUPPORTED = 15 };
/// cudaDataType_t, as far as they take it.
enum Type { R_32F = 0, R_16BF = 14 };
/// cublasComputeType_t: f32, without TF32.
constexpr int COMPUTE_32F = 68;

struct Matrix {
    char *data;
    int type;
    int rows, columns; // column-major as stored
    long long leading, stride;
    bool transposed;
};

/// `d = epilogue(alpha op(a) op(b) + beta d)`, a batch of them.
struct Gemm {
    Matrix a, b, d;
    int m, n, k, batch;
    float alpha, beta;
    /// Parts of k that are summed by themselves, before their sums are added in order.
    int splits = 1;
    /// Added to every column: `m` numbers of the type of d. Null if there is none.
    char *bias = nullptr;
    /// Whether GELU comes last; `before` receives, rounded, what it is applied to.
    bool gelu = false;
    Matrix before{};
};

size_t size_of(int type);

/// Whether matrices of these types are multiplied, with f32 sums.
bool is_known(int type_a, int type_b, int type_d);

/// Carries products out: an empty string, or what is wrong.
std::string multiply(const Gemm &gemm);

} // namespace emulator
