"""BPF in the kernel: libbpf's C API, pins, the compiler, and the layouts shared with `dispatch.bpf.c`."""
