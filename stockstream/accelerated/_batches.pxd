from libc.stdint cimport int32_t, int64_t


cdef struct Batch:
    const char *data
    Py_ssize_t size
    int timestamp_type


cdef struct Spot:
    # the position of a record in the data of its batch; `batch` is the index of that batch
    int64_t offset
    int64_t timestamp
    int32_t key_at
    int32_t key_size
    int32_t value_at
    int32_t value_size
    int32_t headers_at
    int32_t batch


cdef class Record:
    cdef Spot spot
    cdef Batch batch
    cdef object kept        # keeps the batch's data alive
    cdef bytes copied


cdef class Records:
    cdef Spot *spots
    cdef Batch *batches
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef list kept          # the data of each batch
    cdef int _reserve(self, Py_ssize_t more, Py_ssize_t batches) except -1
    cdef int _append(self, Records other, Py_ssize_t begin, Py_ssize_t end) except -1
    cdef Record _record(self, Py_ssize_t number)
