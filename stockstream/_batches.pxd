from libc.stdint cimport int64_t


cdef class Record:
    cdef readonly int64_t offset
    cdef readonly int64_t timestamp
    cdef readonly int timestamp_type
    cdef object batch       # keeps `data` where it is
    cdef const char *data
    cdef Py_ssize_t size
    cdef Py_ssize_t key_at
    cdef Py_ssize_t key_size
    cdef Py_ssize_t value_at
    cdef Py_ssize_t value_size
    cdef Py_ssize_t headers_at
    cdef bytes copied
