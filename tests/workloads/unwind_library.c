// Loaded while it is traced. With another `NAME` the same code at the same addresses, under another name.
#ifndef NAME
#define NAME u_in_library
#endif

int NAME(int (*callee)(void)) {
    int n = callee();
    __asm__ volatile("" ::: "memory");
    return n + 1;
}
