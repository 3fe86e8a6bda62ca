// Guarded memory, and the signals that touching a guard raises.

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>

#include "machine.h"

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

size_t page_bytes() {
    static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

static size_t whole_pages(size_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); }

unsigned char* map_guarded(size_t bytes) {
    bytes = whole_pages(bytes);
    void* all = mmap(nullptr, bytes + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    unsigned char* pages = static_cast<unsigned char*>(all) + GUARD;
    if (bytes > 0 && mprotect(pages, bytes, PROT_READ | PROT_WRITE) != 0) {
        munmap(all, bytes + 2 * GUARD);
        return nullptr;
    }
    return pages;
}

void unmap_guarded(unsigned char* pages, size_t bytes) { munmap(pages - GUARD, whole_pages(bytes) + 2 * GUARD); }

void open_pages(unsigned char* from, size_t bytes, bool open) {
    if (bytes > 0 && mprotect(from, bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) {
        fputs("The emulator could not set up a guard page.\n", stderr);
        abort();
    }
}

// A NaN as bf16 and as f32, and unlike the poison, so that neither reading nor copying it goes unseen.
static unsigned char canary_at(const unsigned char* p) { return reinterpret_cast<uintptr_t>(p) % 2 == 0 ? 0xa5 : 0xff; }

void fill_canary(unsigned char* from, unsigned char* to) {
    for (; from < to; from++) *from = canary_at(from);
}

const unsigned char* broken_canary(const unsigned char* from, const unsigned char* to) {
    for (; from < to; from++) {
        if (*from != canary_at(from)) return from;
    }
    return nullptr;
}

extern "C" {

// Room for the cells of a block. Pages that no kernel touches cost nothing.
Cell* emulator_cells(size_t bytes) {
    void* out = mmap(nullptr, (bytes / 2 + 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return out == MAP_FAILED ? nullptr : static_cast<Cell*>(out);
}

void emulator_free_cells(Cell* cells, size_t bytes) { munmap(cells, (bytes / 2 + 1) * sizeof(Cell)); }

// A block of exactly `bytes` bytes, poisoned, that ends at a guard but for what alignment to 16 bytes leaves.
unsigned char* emulator_alloc(size_t bytes) {
    const size_t pages = whole_pages(bytes == 0 ? 1 : bytes);
    unsigned char* from = map_guarded(pages);
    if (from == nullptr) return nullptr;
    unsigned char* out = from + pages - (bytes + 15) / 16 * 16;
    fill_canary(from, out);
    memset(out, 0xff, bytes);
    fill_canary(out + bytes, from + pages);
    return out;
}

static unsigned char* first_page(unsigned char* block) {
    return reinterpret_cast<unsigned char*>(reinterpret_cast<uintptr_t>(block) / page_bytes() * page_bytes());
}

void emulator_free(unsigned char* block, size_t bytes) { unmap_guarded(first_page(block), bytes == 0 ? 1 : bytes); }

// The address of a byte around the block that something has written to, or 0.
uint64_t emulator_check(unsigned char* block, size_t bytes) {
    unsigned char* from = first_page(block);
    const unsigned char* at = broken_canary(from, block);
    if (at == nullptr) at = broken_canary(block + bytes, from + whole_pages(bytes == 0 ? 1 : bytes));
    return reinterpret_cast<uint64_t>(at);
}
}

// ---- Signals -----------------------------------------------------------------------------------------------------------

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction previous[4];

static void pass_on(int slot, int signal, siginfo_t* info, void* context) {
    const struct sigaction& before = previous[slot];
    if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        // Back to the default action, which the repeated instruction then meets.
        sigaction(signal, &before, nullptr);
    } else {
        before.sa_handler(signal);
    }
}

void outside_shared(Machine* m, uint64_t address, bool write) {
    const char* what = write ? "wrote" : "read";
    const uint64_t shared = reinterpret_cast<uint64_t>(m->shared);
    char text[128];
    if (address < shared) {
        snprintf(text, sizeof text, "%s %llu bytes before its shared memory", what,
                 static_cast<unsigned long long>(shared - address));
    } else {
        snprintf(text, sizeof text, "%s byte %llu of its %zu bytes of shared memory", what,
                 static_cast<unsigned long long>(address - shared), m->shared_bytes);
    }
    emulated_fault(text);
}

// A signal that a kernel raises becomes a fault. The C library is free to use: none of its functions was under way.
static void on_signal(int signal, siginfo_t* info, void* context) {
    Machine* m = emulated_machine;
    if (m == nullptr || m->running == nullptr) {
        for (int slot = 0; slot < 4; slot++) {
            if (SIGNALS[slot] == signal) return pass_on(slot, signal, info, context);
        }
        return;
    }
    bool write = false;
    m->pc = nullptr;
#if defined(__x86_64__) && defined(__linux__)
    const auto* registers = static_cast<ucontext_t*>(context);
    write = (registers->uc_mcontext.gregs[REG_ERR] & 2) != 0;
    m->pc = reinterpret_cast<const void*>(registers->uc_mcontext.gregs[REG_RIP] + 1);
#endif
    if (signal == SIGFPE) emulated_fault("divided an integer by zero");
    if (signal == SIGILL) emulated_fault("ran into a trap");
#ifdef SI_KERNEL
    if (info->si_code == SI_KERNEL) emulated_fault("used an address that is not aligned for the access, or is none");
#endif
    const uint64_t address = reinterpret_cast<uint64_t>(info->si_addr);
    const uint64_t stack = reinterpret_cast<uint64_t>(m->running->stack);
    if (address - (reinterpret_cast<uint64_t>(m->shared_area) - GUARD) < MAX_SHARED + 2 * GUARD) {
        outside_shared(m, address, write);
    }
    if (address < stack && address >= stack - page_bytes()) emulated_fault("used up its stack");
    m->fault_address = address;
    emulated_fault(write ? "wrote to memory that is not its own" : "read memory that is not its own");
}

void install_signal_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        for (int slot = 0; slot < 4; slot++) {
            struct sigaction action;
            memset(&action, 0, sizeof action);
            action.sa_sigaction = on_signal;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            sigemptyset(&action.sa_mask);
            sigaction(SIGNALS[slot], &action, &previous[slot]);
        }
    });
}
