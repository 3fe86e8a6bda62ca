// Tensor-core products and asynchronous copies, portable from sm_80 on.
//
// Fragment layouts are PTX's for mma.m16n8k16 (bf16 in, f32 out). With group = lane / 4 and pair = 2 * (lane % 4):
//   A [16 x 16]: a[0] = (group, pair..+1)      a[1] = (group + 8, pair..+1)
//                a[2] = (group, pair + 8..+1)  a[3] = (group + 8, pair + 8..+1)
//   B [16 x 8]:  b[0] = (pair..+1, group)      b[1] = (pair + 8..+1, group)
//   C [16 x 8]:  c[0..1] = (group, pair..+1)   c[2..3] = (group + 8, pair..+1)
#pragma once

#include "common.cuh"

#ifdef TUNESMITH_EMULATOR
// Declared by emulator.h: emulated_mma, emulated_ldmatrix, emulated_cp_async, emulated_cp_async_commit,
// emulated_cp_async_wait.
#else
DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
#endif

// c += a b.
DEVICE void mma_16816(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef TUNESMITH_EMULATOR
    emulated_mma(c, a, b);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Loads four 8 x 8 tiles of shared memory: lane l gives the (16-byte aligned) address of row l % 8 of tile l / 8, and
// gets in r[t] the pair at (lane / 4, 2 * (lane % 4)) of tile t.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const bf16* row) {
#ifdef TUNESMITH_EMULATOR
    emulated_ldmatrix(r, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// As ldmatrix_x4, with each tile transposed.
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const bf16* row) {
#ifdef TUNESMITH_EMULATOR
    emulated_ldmatrix(r, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// Starts a copy of 16 bytes from global to shared memory, or of zeros where not `valid` (`from` is then not read, but
// must still be an address of the buffer). Visible to this thread after a wait, to others after a barrier too.
DEVICE void cp_async_16(void* to, const void* from, bool valid) {
#ifdef TUNESMITH_EMULATOR
    emulated_cp_async(to, from, valid);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
#endif
}

// Closes the group of copies started since the last one.
DEVICE void cp_async_commit() {
#ifdef TUNESMITH_EMULATOR
    emulated_cp_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of this thread's groups are still under way.
template <int N>
DEVICE void cp_async_wait() {
#ifdef TUNESMITH_EMULATOR
    emulated_cp_async_wait(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
