from libc.stdint cimport int64_t


cdef struct Spot:
    # where a record is in its batch, whose bytes `data` are
    int64_t offset
    int64_t timestamp
    const char *data
    Py_ssize_t size
    Py_ssize_t key_at
    Py_ssize_t key_size
    Py_ssize_t value_at
    Py_ssize_t value_size
    Py_ssize_t headers_at
    int timestamp_type
    int batch


cdef class Record:
    cdef Spot spot
    cdef object batch       # keeps its data where they are
    cdef bytes copied


cdef class Records:
    cdef Spot *spots
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef list batches
    cdef int _reserve(self, Py_ssize_t more) except -1
    cdef int _append(self, Records other, Py_ssize_t begin, Py_ssize_t end) except -1
    cdef Record _record(self, Py_ssize_t number)
