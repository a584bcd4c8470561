// libcublasLt: products with an epilogue, on the CPU, in the stream's order. What it refuses is what NVIDIA's header (cublasLt.h) and documentation
// of the library say that it refuses; where they leave a choice, the comments say what was chosen here.
//
// It offers several algorithms, which cut k into 1, 2, 4 or 8 parts: each gives sums in another order, so other bits.
#include "gemm.h"

#include <algorithm>
#include <cstring>
#include <tuple>

using namespace emulator;

namespace {

/// cublasLtEpilogue_t is a set of these, or 1 for none.
enum Epilogue { DEFAULT = 1, BIAS = 4, GELU = 32, AUX = 128 };
/// cublasLtReductionScheme_t: partial sums in the compute type, in the workspace.
constexpr uint32_t COMPUTE_TYPE = 2;
constexpr uint64_t MAGIC = 0x7061746368677074; // "patchgpt"

struct Descriptor {
    int32_t compute, scale, transposed[2] = {0, 0};
    uint32_t epilogue = DEFAULT;
    char *bias = nullptr, *aux = nullptr;
    int64_t aux_leading = 0;
};

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
    int32_t batch = 1;
    int64_t stride = 0;
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t schemes = 7, alignment[4] = {256, 256, 256, 256};
};

/// cublasLtMatmulAlgo_t, 64 bytes.
struct Algorithm {
    uint64_t magic, splits;
    /// What it was made for: a hash of descriptor and layouts, and the promised alignments of a, b, c, d in one byte each.
    uint64_t problem, alignments, unused[4];
};

/// cublasLtMatmulHeuristicResult_t.
struct Found {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

int refused(int status, const std::string &why) { return set_last_error("cuBLASLt: " + why), status; }

template <typename T> int take(T &field, const void *value, size_t bytes) {
    if (bytes != sizeof(T)) return refused(BLAS_INVALID_VALUE, "an attribute of " + std::to_string(sizeof(T)) + " bytes is given as " + std::to_string(bytes));
    return memcpy(&field, value, bytes), BLAS_SUCCESS;
}

bool is_aligned(const void *address, uint64_t bytes) { return (uintptr_t)address % bytes == 0; }

/// Refuses what no algorithm computes.
int check(const Descriptor &d, const Layout &a, const Layout &b, const Layout &c, const Layout &out) {
    if (d.compute != COMPUTE_32F || d.scale != R_32F || !is_known(a.type, b.type, out.type) || c.type != out.type)
        return refused(BLAS_NOT_SUPPORTED, "f32 or bf16 factors of one type with sums in f32 expected");
    uint64_t m = out.rows, n = out.columns, k = d.transposed[0] ? a.rows : a.columns;
    if ((d.transposed[0] ? a.columns : a.rows) != m || (d.transposed[1] ? b.columns : b.rows) != k || (d.transposed[1] ? b.rows : b.columns) != n ||
        c.rows != m || c.columns != n || !m || !n || !k)
        return refused(BLAS_INVALID_VALUE, "the matrices' sizes do not fit");
    for (const Layout *x : {&a, &b, &c, &out}) {
        if (x->leading < (int64_t)x->rows) return refused(BLAS_INVALID_VALUE, "a leading dimension is smaller than the rows");
        if (x->batch != out.batch || x->batch < 1) return refused(BLAS_INVALID_VALUE, "the matrices' batch counts differ");
    }
    bool bias = d.epilogue & BIAS, gelu = d.epilogue & GELU;
    if (d.epilogue != DEFAULT && d.epilogue != BIAS && d.epilogue != (GELU | AUX) && d.epilogue != (GELU | AUX | BIAS))
        return refused(BLAS_NOT_SUPPORTED, "the epilogue " + std::to_string(d.epilogue) + " is not emulated");
    if (bias && (!d.bias || !is_aligned(d.bias, size_of(out.type)))) return refused(BLAS_INVALID_VALUE, "the epilogue needs a bias of the output's type");
    if (gelu && out.batch > 1) return refused(BLAS_NOT_SUPPORTED, "batches with an auxiliary output are not emulated");
    if (gelu && !d.aux) return refused(BLAS_INVALID_VALUE, "the epilogue needs an auxiliary output");
    if (gelu && (d.aux_leading % 8 || d.aux_leading < (int64_t)m))
        return refused(BLAS_INVALID_VALUE, "the auxiliary's leading dimension is no multiple of 8, or smaller than the output's rows");
    // The header says that algorithms depend on the pointer's alignment; none here stores less than 16 bytes at a time.
    if (gelu && !is_aligned(d.aux, 16)) return refused(BLAS_NOT_SUPPORTED, "the auxiliary output does not start at a multiple of 16 bytes");
    return BLAS_SUCCESS;
}

uint64_t hash(const Descriptor &d, const Layout &a, const Layout &b, const Layout &out) {
    uint64_t state = 1469598103934665603u;
    auto mix = [&](uint64_t x) { state = (state ^ x) * 1099511628211u; };
    for (uint64_t x : {(uint64_t)d.transposed[0], (uint64_t)d.transposed[1], (uint64_t)d.epilogue}) mix(x);
    for (const Layout *x : {&a, &b, &out})
        for (uint64_t y : {(uint64_t)x->type, x->rows, x->columns, (uint64_t)x->leading, (uint64_t)x->batch, (uint64_t)x->stride}) mix(y);
    return state;
}

size_t workspace_of(uint64_t splits, const Layout &out) {
    return splits == 1 ? 0 : splits * (size_t)out.rows * out.columns * (size_t)out.batch * sizeof(float);
}

Matrix matrix(const Layout &x, const void *data, bool transposed) {
    return {(char *)data, x.type, (int)x.rows, (int)x.columns, x.leading, x.stride, transposed};
}

} // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }
int cublasLtCreate(void **handle) { return *handle = new char, BLAS_SUCCESS; }
int cublasLtDestroy(void *handle) { return delete (char *)handle, BLAS_SUCCESS; }

int cublasLtMatmulDescCreate(void **descriptor, int compute, int scale) { return *descriptor = new Descriptor{compute, scale}, BLAS_SUCCESS; }
int cublasLtMatmulDescDestroy(void *descriptor) { return delete (Descriptor *)descriptor, BLAS_SUCCESS; }
int cublasLtMatmulDescSetAttribute(void *descriptor, int attribute, const void *value, size_t bytes) {
    auto &d = *(Descriptor *)descriptor;
    switch (attribute) {
    case 3: return take(d.transposed[0], value, bytes);
    case 4: return take(d.transposed[1], value, bytes);
    case 7: return take(d.epilogue, value, bytes);
    case 8: return take(d.bias, value, bytes);
    case 11: return take(d.aux, value, bytes);
    case 12: return take(d.aux_leading, value, bytes);
    default: return refused(BLAS_NOT_SUPPORTED, "attribute " + std::to_string(attribute) + " of a product is not emulated");
    }
}

int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    return *layout = new Layout{type, rows, columns, leading}, BLAS_SUCCESS;
}
int cublasLtMatrixLayoutDestroy(void *layout) { return delete (Layout *)layout, BLAS_SUCCESS; }
int cublasLtMatrixLayoutSetAttribute(void *layout, int attribute, const void *value, size_t bytes) {
    auto &x = *(Layout *)layout;
    switch (attribute) {
    case 5: return take(x.batch, value, bytes);
    case 6: return take(x.stride, value, bytes);
    default: return refused(BLAS_NOT_SUPPORTED, "attribute " + std::to_string(attribute) + " of a layout is not emulated");
    }
}

int cublasLtMatmulPreferenceCreate(void **preference) { return *preference = new Preference, BLAS_SUCCESS; }
int cublasLtMatmulPreferenceDestroy(void *preference) { return delete (Preference *)preference, BLAS_SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes) {
    auto &p = *(Preference *)preference;
    switch (attribute) {
    case 1: return take(p.workspace, value, bytes);
    case 3: return take(p.schemes, value, bytes);
    case 5:
    case 6:
    case 7:
    case 8: return take(p.alignment[attribute - 5], value, bytes);
    default: return refused(BLAS_NOT_SUPPORTED, "attribute " + std::to_string(attribute) + " of a preference is not emulated");
    }
}

int cublasLtMatmulAlgoGetHeuristic(void *, void *descriptor, void *a, void *b, void *c, void *d, void *preference, int wanted, void *results, int *count) {
    const auto &[description, left, right, before, out] =
        std::tie(*(Descriptor *)descriptor, *(Layout *)a, *(Layout *)b, *(Layout *)c, *(Layout *)d);
    const auto &p = *(Preference *)preference;
    *count = 0;
    if (wanted < 1) return refused(BLAS_INVALID_VALUE, "no algorithm is asked for");
    if (int status = check(description, left, right, before, out)) return status;
    // NVIDIA does not say which alignment is too little. Here algorithms load 4 bytes at a time, so that what must be done without one is tested.
    uint64_t alignments = 0;
    for (int i = 0; i < 4; i++) {
        if (p.alignment[i] < 4) return refused(BLAS_NOT_SUPPORTED, "no algorithm takes matrices at multiples of less than 4 bytes");
        alignments |= (uint64_t)std::min(p.alignment[i], 128u) << (8 * i);
    }
    uint64_t k = description.transposed[0] ? left.rows : left.columns;
    for (uint64_t splits : {1, 2, 4, 8}) {
        bool fits = splits <= k && workspace_of(splits, out) <= p.workspace && (splits == 1 || p.schemes & COMPUTE_TYPE);
        if (*count == wanted || !fits) continue;
        ((Found *)results)[(*count)++] = {{MAGIC, splits, hash(description, left, right, out), alignments, {}}, workspace_of(splits, out), 0, 1, {}};
    }
    return BLAS_SUCCESS;
}

int cublasLtMatmulAlgoCheck(void *, void *descriptor, void *a, void *b, void *c, void *d, const void *algorithm, void *result) {
    const auto &[description, left, right, before, out] =
        std::tie(*(Descriptor *)descriptor, *(Layout *)a, *(Layout *)b, *(Layout *)c, *(Layout *)d);
    const auto &chosen = *(const Algorithm *)algorithm;
    if (int status = check(description, left, right, before, out)) return status;
    uint64_t k = description.transposed[0] ? left.rows : left.columns;
    if (chosen.magic != MAGIC || chosen.splits < 1 || chosen.splits > k) return refused(BLAS_INVALID_VALUE, "an algorithm that the heuristic has not made");
    if (chosen.problem != hash(description, left, right, out)) return refused(BLAS_INVALID_VALUE, "an algorithm for another problem");
    *(Found *)result = {chosen, workspace_of(chosen.splits, out), 0, 1, {}};
    return BLAS_SUCCESS;
}

int cublasLtMatmul(void *handle, void *descriptor, const void *alpha, const void *a, void *layout_a, const void *b, void *layout_b, const void *beta,
                   const void *c, void *layout_c, void *d, void *layout_d, const void *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    std::lock_guard<std::recursive_mutex> lock(driver_mutex());
    const auto &description = *(Descriptor *)descriptor;
    const auto &[left, right, out] = std::tie(*(Layout *)layout_a, *(Layout *)layout_b, *(Layout *)layout_d);
    if (!algorithm) return refused(BLAS_NOT_SUPPORTED, "an algorithm expected: without one the library would look for it at each call");
    Found found;
    if (int status = cublasLtMatmulAlgoCheck(handle, descriptor, layout_a, layout_b, layout_c, layout_d, algorithm, &found)) return status;
    const void *pointers[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        uint64_t promised = found.algorithm.alignments >> (8 * i) & 0xff;
        if (!is_aligned(pointers[i], promised))
            return refused(BLAS_INVALID_VALUE, "a matrix lies at no multiple of the " + std::to_string(promised) + " bytes that its algorithm was chosen for");
    }
    if (c != d) return refused(BLAS_NOT_SUPPORTED, "sums that are read at one place and written at another are not emulated");
    if (found.workspace > workspace_bytes || !is_aligned(workspace, 16)) return refused(BLAS_INVALID_VALUE, "a workspace that is too small, or not aligned to 16 bytes");
    Gemm gemm{matrix(left, a, description.transposed[0]), matrix(right, b, description.transposed[1]), matrix(out, d, false)};
    gemm.m = (int)out.rows, gemm.n = (int)out.columns, gemm.batch = out.batch;
    gemm.k = (int)(description.transposed[0] ? left.rows : left.columns);
    gemm.alpha = *(const float *)alpha, gemm.beta = *(const float *)beta;
    gemm.splits = (int)found.algorithm.splits;
    if (description.epilogue & BIAS) gemm.bias = description.bias;
    gemm.gelu = description.epilogue & GELU;
    gemm.before = {description.aux, out.type, (int)out.rows, (int)out.columns, description.aux_leading, 0, false};
    size_t used = found.workspace;
    bool taken = enqueue(stream, [=]() -> std::string {
        if (used && !is_device_range(workspace, used)) return "cuBLASLt: the workspace reaches beyond its allocation: " + describe(workspace);
        // What others left there is gone.
        memset(workspace, 0xff, used);
        return multiply(gemm);
    });
    return taken ? BLAS_SUCCESS : BLAS_EXECUTION_FAILED;
}
}
