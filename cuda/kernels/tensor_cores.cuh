// Matrix fragments and tensor cores (sm_80), bf16 with f32 accumulation: a warp's products. As in prelude.cuh each function has two bodies, inline
// PTX and the emulator's; those of a warpgroup (sm_90a) are in hopper.cuh.
//
// Fragments of m16n8k16, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"):
//   a[0] = A[g][2t, 2t+1], a[1] = A[g+8][2t, ..], a[2] = A[g][2t+8, ..], a[3] = A[g+8][2t+8, ..]   (A is 16 x 16, rows of K)
//   b[0] = B[2t, 2t+1][g], b[1] = B[2t+8, ..][g]                                                   (B is 16 x 8)
//   d[0], d[1] = D[g][2t, 2t+1], d[2], d[3] = D[g+8][2t, 2t+1]                                     (D is 16 x 8)
#pragma once
#include "prelude.cuh"

/// Loads four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16-byte aligned),
/// and `out[i]` holds, of matrix i, row lane / 4, columns 2 (lane % 4) and the next.
DEVICE void load_matrices_4(u32 (&out)[4], const void *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulated_load_matrices(out, row, 4, false);
#endif
}

/// As [`load_matrices_4`] with each matrix transposed.
DEVICE void load_matrices_4_transposed(u32 (&out)[4], const void *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulated_load_matrices(out, row, 4, true);
#endif
}

/// As [`load_matrices_4`] for two matrices; lanes 0 to 15 give the addresses.
DEVICE void load_matrices_2(u32 (&out)[2], const void *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulated_load_matrices(out, row, 2, false);
#endif
}

/// As [`load_matrices_2`] with each matrix transposed.
DEVICE void load_matrices_2_transposed(u32 (&out)[2], const void *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulated_load_matrices(out, row, 2, true);
#endif
}

/// D += A B on the tensor cores.
DEVICE void multiply_16x8x16(f32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulated_multiply_16x8x16(d, a, b);
#endif
}
