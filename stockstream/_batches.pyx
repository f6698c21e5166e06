# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The records of a Kafka record batch (message format 2), compiled: they stay in the batch's bytes, and become Python's objects when they are asked for.

aiokafka makes bytes of each key and value and a list of each record's headers, 0.4 us a record; `_ticks` reads the values where they stand.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from struct import Struct

from aiokafka import codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

HEADER = Struct(">qiibIhiqqqhii")
"""Base offset, length, leader's epoch, magic, CRC, attributes, last offset's delta, first and greatest time, producer's id, epoch and sequence, records."""
DECODERS = {1: codec.gzip_decode, 2: codec.snappy_decode, 3: codec.lz4_decode, 4: codec.zstd_decode}
CODEC, APPEND_TIME = 0x07, 0x08


cdef struct Cursor:
    const unsigned char *begin
    Py_ssize_t at
    Py_ssize_t end


cdef inline int64_t _varint(Cursor *cursor) except? -2:
    """The next number: seven bits a byte, the lowest first, its sign in the lowest bit."""
    cdef uint64_t value = 0
    cdef int shift = 0
    cdef unsigned char byte
    while True:
        if cursor.at >= cursor.end or shift > 63:
            raise CorruptRecordException("A number in a record has no end")
        byte = cursor.begin[cursor.at]
        cursor.at += 1
        value |= <uint64_t>(byte & 0x7f) << shift
        if byte < 0x80:
            return <int64_t>(value >> 1) ^ -<int64_t>(value & 1)
        shift += 7


cdef inline Py_ssize_t _pass(Cursor *cursor, Py_ssize_t size) except -1:
    """Goes on behind so many bytes, none where `size` is negative; returns where they begin."""
    cdef Py_ssize_t at = cursor.at
    if size > cursor.end - at:
        raise CorruptRecordException(f"A record has {size} bytes where {cursor.end - at} are left")
    if size > 0:
        cursor.at += size
    return at


@cython.final
@cython.freelist(512)
cdef class Record:
    """A record; `timestamp` is epoch milliseconds, `timestamp_type` 1 where it is the broker's."""

    @property
    def key(self):
        return None if self.key_size < 0 else PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.batch) + self.key_at, self.key_size)

    @property
    def value(self):
        if self.value_size < 0:
            return None
        if self.copied is None:
            self.copied = PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.batch) + self.value_at, self.value_size)
        return self.copied

    @property
    def headers(self):
        """(Name, value or None) of each."""
        cdef Cursor cursor = Cursor(<const unsigned char *>PyBytes_AS_STRING(self.batch), self.headers_at, PyBytes_GET_SIZE(self.batch))
        cdef list found = []
        cdef Py_ssize_t at, size
        for _ in range(_varint(&cursor)):
            size = _varint(&cursor)
            at = _pass(&cursor, size)
            name = self.batch[at : at + size].decode()
            size = _varint(&cursor)
            at = _pass(&cursor, size)
            found.append((name, None if size < 0 else self.batch[at : at + size]))
        return found


def records(data, int64_t begin):
    """The records of a batch from offset `begin` on, decompressed. Raises `CorruptRecordException` and `UnsupportedCodecError`.

    `data` is the whole batch, as bytes or a view of them. Whether its checksum is right must have been looked at.
    """
    cdef int64_t base, first_time, last_time
    cdef Py_ssize_t count, begins, length
    cdef int timestamp_type
    cdef Cursor cursor
    cdef Record record
    cdef bytes batch
    cdef list found = []
    base, _, _, _, _, attributes, _, first_time, last_time, _, _, _, count = HEADER.unpack_from(data)
    kind = attributes & CODEC
    if kind and kind not in DECODERS:
        raise UnsupportedCodecError(f"Unknown compression codec {kind:#04x}")
    batch = bytes(data[HEADER.size :])
    if kind:
        batch = bytes(DECODERS[kind](batch))
    timestamp_type = 1 if attributes & APPEND_TIME else 0
    cursor = Cursor(<const unsigned char *>PyBytes_AS_STRING(batch), 0, PyBytes_GET_SIZE(batch))
    for _ in range(count):
        record = Record.__new__(Record)
        length = _varint(&cursor)
        begins = cursor.at
        if not 0 < length <= cursor.end - begins:
            raise CorruptRecordException(f"A record has {length} bytes where {cursor.end - begins} are left")
        cursor.at += 1                                                   # attributes: none are defined
        record.batch = batch
        record.timestamp_type = timestamp_type
        record.timestamp = first_time + _varint(&cursor)
        if timestamp_type:
            record.timestamp = last_time
        record.offset = base + _varint(&cursor)
        record.key_size = _varint(&cursor)
        record.key_at = _pass(&cursor, record.key_size)
        record.value_size = _varint(&cursor)
        record.value_at = _pass(&cursor, record.value_size)
        record.headers_at = cursor.at
        if cursor.at >= begins + length:
            raise CorruptRecordException("A record is longer than it says")
        cursor.at = begins + length
        if record.offset >= begin:
            found.append(record)
    if cursor.at != cursor.end:
        raise CorruptRecordException(f"{cursor.end - cursor.at} bytes are left behind the last record")
    return found
