from libc.stdint cimport uintptr_t

cpdef int resolve(object isa) except -1


cdef inline int require_aligned(const void *address, size_t alignment, str name) except -1:
    # A memoryview accepts an unaligned buffer without a word; reading it as float is undefined.
    if <uintptr_t> address % alignment:
        raise ValueError(f"{name} is not aligned to {alignment} bytes; pass a copy")
    return 0
