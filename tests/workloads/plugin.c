// Built twice, with INNER=plug_a and INNER=plug_b: the same code at the same place under another name.
#include <stddef.h>

__attribute__((noinline, noclone, noipa)) void INNER(void (*call)(void), long times) {
    for (long i = 0; i < times; i++) call();
    __asm__ volatile("" ::: "memory");
}

__attribute__((noinline, noclone, noipa)) void plug(void (*call)(void), long times) {
    INNER(call, times);
    __asm__ volatile("" ::: "memory");
}
