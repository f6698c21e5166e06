# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Kafka's record batches (message format 2), compiled.

Reading leaves the records in the bytes of their batch, and makes Python objects of them only on access. aiokafka makes bytes of each key and value and a
list of each record's headers, which costs 0.4 us a record. Sending copies each message once.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from struct import Struct
from time import time as now

import pyarrow as pa
from aiokafka import codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.util import calc_crc32c

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <nmmintrin.h>
    static int crc_is_an_instruction(void) { return __builtin_cpu_supports("sse4.2"); }
    __attribute__((target("sse4.2"))) static uint32_t crc_of(const unsigned char *at, size_t size) {
        uint64_t crc = 0xffffffffu, eight;
        for (; size >= 8; size -= 8, at += 8) {
            memcpy(&eight, at, 8);
            crc = _mm_crc32_u64(crc, eight);
        }
        for (; size; size--, at++)
            crc = _mm_crc32_u8((uint32_t)crc, *at);
        return (uint32_t)crc ^ 0xffffffffu;
    }
    #else
    static int crc_is_an_instruction(void) { return 0; }
    static uint32_t crc_of(const unsigned char *at, size_t size) { (void)at; (void)size; return 0; }
    #endif
    """
    bint crc_is_an_instruction()
    uint32_t crc_of(const unsigned char *at, size_t size)

cdef enum:
    FORMAT = 2
    PREFIX_SIZE = 12    # base offset and length, which the length does not count
    HEADER_SIZE = 61
    CRC_AT = 17
    LARGEST_FRAME = 1 << 26     # bytes: a compressed frame that claims to hold more is decompressed in pieces
    LARGEST_BATCH = 0x7fffffff  # bytes, decompressed: positions in it have 32 bits
    SHORTEST_RECORD = 7 # bytes: each of its numbers has at least one

CRC = Struct(">I")
HEADER = Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and greatest time, producer id, epoch and sequence, number of records."""
DECODERS = {1: codec.gzip_decode, 2: codec.snappy_decode, 3: codec.lz4_decode, 4: codec.zstd_decode}
CODEC, APPEND_TIME = 0x07, 0x08


def size_of_zstd(const unsigned char[::1] data):
    """The decompressed size of a zstd frame, in bytes, by its header; -1 if the header has none (RFC 8878, 3.1.1.1)."""
    cdef int kind, at, size, byte
    cdef uint64_t content_size = 0
    if data.shape[0] < 18 or data[0] != 0x28 or data[1] != 0xb5 or data[2] != 0x2f or data[3] != 0xfd:
        return -1
    kind, at = data[4] >> 6, 5
    size = 1 << kind
    if kind == 0 and not data[4] & 0x20:
        return -1
    at += (0 if data[4] & 0x20 else 1) + (1 << (data[4] & 3) >> 1)
    for byte in range(size):
        content_size |= <uint64_t>data[at + byte] << 8 * byte
    if kind == 1:
        content_size += 256
    return content_size if content_size <= LARGEST_FRAME else -1


cdef inline Py_ssize_t _length_of_lz4(const unsigned char[::1] data, Py_ssize_t *at, Py_ssize_t end, int bits) noexcept:
    """A length: the four bits of a token, and if all are set, the bytes that follow, up to one below 255. Negative if that one is missing."""
    cdef Py_ssize_t length = bits
    cdef int byte
    if bits < 15:
        return length
    while at[0] < end:
        byte = data[at[0]]
        at[0] += 1
        length += byte
        if byte < 255:
            return length
    return -1


cdef Py_ssize_t _size_of_lz4_block(const unsigned char[::1] data, Py_ssize_t at, Py_ssize_t end) noexcept:
    """The decompressed size of a block, in bytes: literals and matches of each of its sequences; -1 if it is invalid."""
    cdef Py_ssize_t size = 0, length
    cdef int token
    while at < end:
        token = data[at]
        at += 1
        length = _length_of_lz4(data, &at, end, token >> 4)
        if length < 0:
            return -1
        size += length
        at += length
        if at == end:                                                    # the last sequence has literals only
            return size
        at += 2                                                          # the match's distance
        length = _length_of_lz4(data, &at, end, token & 15)
        if length < 0 or size > LARGEST_FRAME:
            return -1
        size += length + 4
    return -1


def size_of_lz4(const unsigned char[::1] data):
    """The decompressed size of one lz4 frame, in bytes, by the lengths in its blocks, since most headers have none; -1 if it is invalid or not the only frame
    (frame format 1.6, block format)."""
    cdef Py_ssize_t at, size = 0, block, block_size, held, checksum_size
    if data.shape[0] < 11 or data[0] != 0x04 or data[1] != 0x22 or data[2] != 0x4d or data[3] != 0x18:
        return -1
    checksum_size = 4 if data[4] & 0x10 else 0                           # of each block
    at = 7 + (8 if data[4] & 0x08 else 0) + (4 if data[4] & 0x01 else 0)
    while at + 4 <= data.shape[0]:
        block = <Py_ssize_t>data[at] | <Py_ssize_t>data[at + 1] << 8 | <Py_ssize_t>data[at + 2] << 16 | <Py_ssize_t>data[at + 3] << 24
        at += 4
        if not block:
            return size if at + (4 if data[4] & 0x04 else 0) == data.shape[0] else -1
        block_size = block & 0x7fffffff
        if block_size > data.shape[0] - at:
            return -1
        held = block_size if block & 0x80000000 else _size_of_lz4_block(data, at, at + block_size)
        size += held
        if held < 0 or size > LARGEST_FRAME:
            return -1
        at += block_size + checksum_size
    return -1


ARROW_CODECS = {3: (size_of_lz4, pa.Codec("lz4")), 4: (size_of_zstd, pa.Codec("zstd"))}
"""By codec: the function for the decompressed size, and Arrow's codec, which needs that size."""


def decompressed(int kind, data):
    """The decompressed records of a batch, as bytes or as an Arrow buffer. Raises `UnsupportedCodecError`, or the codec's own error."""
    if not kind:
        return bytes(data)
    if kind in ARROW_CODECS:
        size_of, arrow = ARROW_CODECS[kind]
        size = size_of(data)
        if size >= 0:
            try:
                return arrow.decompress(data, size)
            except OSError:                                              # several frames: the size is only that of the first
                pass
    if kind not in DECODERS:
        raise UnsupportedCodecError(f"Unknown compression codec {kind:#04x}")
    return bytes(DECODERS[kind](bytes(data)))


cdef struct Cursor:
    const unsigned char *begin
    Py_ssize_t at
    Py_ssize_t end


cdef inline int64_t _varint(Cursor *cursor) except? -2:
    """Reads a zigzag varint: seven bits a byte, the lowest first, the sign in the lowest bit."""
    cdef uint64_t value = 0
    cdef int shift = 0
    cdef unsigned char byte
    while True:
        if cursor.at >= cursor.end or shift > 63:
            raise CorruptRecordException("A varint in a record has no end")
        byte = cursor.begin[cursor.at]
        cursor.at += 1
        value |= <uint64_t>(byte & 0x7f) << shift
        if byte < 0x80:
            return <int64_t>(value >> 1) ^ -<int64_t>(value & 1)
        shift += 7


cdef inline Py_ssize_t _skip(Cursor *cursor, Py_ssize_t size) except -1:
    """Skips `size` bytes, none if it is negative; returns where they begin."""
    cdef Py_ssize_t at = cursor.at
    if size > cursor.end - at:
        raise CorruptRecordException(f"A record has {size} bytes where {cursor.end - at} are left")
    if size > 0:
        cursor.at += size
    return at


@cython.final
@cython.freelist(512)
@cython.no_gc
cdef class Record:
    """A record; `timestamp` is epoch milliseconds, `timestamp_type` 1 if the broker set it."""

    @property
    def offset(self):
        return self.spot.offset

    @property
    def timestamp(self):
        return self.spot.timestamp

    @property
    def timestamp_type(self):
        return self.batch.timestamp_type

    @property
    def key(self):
        return None if self.spot.key_size < 0 else PyBytes_FromStringAndSize(self.batch.data + self.spot.key_at, self.spot.key_size)

    @property
    def value(self):
        if self.spot.value_size < 0:
            return None
        if self.copied is None:
            self.copied = PyBytes_FromStringAndSize(self.batch.data + self.spot.value_at, self.spot.value_size)
        return self.copied

    @property
    def headers(self):
        """(Name, value or None) of each."""
        cdef Cursor cursor = Cursor(<const unsigned char *>self.batch.data, self.spot.headers_at, self.batch.size)
        cdef list found = []
        cdef Py_ssize_t at, size
        for _ in range(_varint(&cursor)):
            size = _varint(&cursor)
            if size < 0:
                raise CorruptRecordException("A header has no name")
            at = _skip(&cursor, size)
            name = PyBytes_FromStringAndSize(self.batch.data + at, size).decode()
            size = _varint(&cursor)
            at = _skip(&cursor, size)
            found.append((name, None if size < 0 else PyBytes_FromStringAndSize(self.batch.data + at, size)))
        return found


@cython.final
cdef class Records:
    """Records of one or more batches, which become objects on access. A slice is again `Records`."""

    def __cinit__(self):
        self.kept = []

    def __dealloc__(self):
        PyMem_Free(self.spots)
        PyMem_Free(self.batches)

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        cdef Py_ssize_t begin, end, step
        cdef Records part
        if isinstance(at, slice):
            begin, end, step = at.indices(self.count)
            if step != 1:
                raise ValueError("records have slices of step 1 only")
            if begin == 0 and end == self.count:
                return self
            part = Records.__new__(Records)
            part._append(self, begin, end)
            return part
        begin = at
        if begin < 0:
            begin += self.count
        if not 0 <= begin < self.count:
            raise IndexError("no such record")
        return self._record(begin)

    def __iter__(self):
        cdef Py_ssize_t number
        for number in range(self.count):
            yield self._record(number)

    cdef int _reserve(self, Py_ssize_t more, Py_ssize_t batches) except -1:
        """Makes room for more records, of more batches."""
        cdef Spot *spots
        cdef Batch *of
        if self.count + more > self.room:
            spots = <Spot *>PyMem_Realloc(self.spots, (self.count + more) * sizeof(Spot))
            if spots is NULL:
                raise MemoryError
            self.spots, self.room = spots, self.count + more
        of = <Batch *>PyMem_Realloc(self.batches, (len(self.kept) + batches) * sizeof(Batch))
        if of is NULL:
            raise MemoryError
        self.batches = of
        return 0

    cdef int _append(self, Records other, Py_ssize_t begin, Py_ssize_t end) except -1:
        cdef Py_ssize_t number
        cdef int before = <int>len(self.kept)
        if begin >= end:
            return 0
        self._reserve(end - begin, len(other.kept))
        memcpy(&self.spots[self.count], &other.spots[begin], (end - begin) * sizeof(Spot))
        memcpy(&self.batches[before], other.batches, len(other.kept) * sizeof(Batch))
        if before:
            for number in range(self.count, self.count + end - begin):
                self.spots[number].batch += before
        self.kept += other.kept
        self.count += end - begin
        return 0

    cdef Record _record(self, Py_ssize_t number):
        cdef Record record = Record.__new__(Record)
        record.spot = self.spots[number]
        record.batch, record.kept = self.batches[record.spot.batch], self.kept[record.spot.batch]
        return record


def joined(parts):
    """The records of all parts, one after the other."""
    cdef Records part, whole = Records.__new__(Records)
    cdef Py_ssize_t count = 0
    for part in parts:
        count += part.count
    whole._reserve(count, 0)
    for part in parts:
        whole._append(part, 0, part.count)
    return whole


def records(data, int64_t begin):
    """The records of a batch from offset `begin` on. Raises `CorruptRecordException` and `UnsupportedCodecError`.

    `data` is the whole batch, as bytes or a view of them. The caller has verified its checksum (`is_whole`).
    """
    cdef int64_t base, first_time, last_time
    cdef Py_ssize_t count, begins, length, length_of
    cdef int timestamp_type
    cdef Cursor cursor
    cdef Spot *spot
    cdef Py_buffer view
    cdef Records found = Records.__new__(Records)
    base, _, _, _, _, attributes, _, first_time, last_time, _, _, _, count = HEADER.unpack_from(data)
    batch = decompressed(attributes & CODEC, data[HEADER_SIZE:])
    timestamp_type = 1 if attributes & APPEND_TIME else 0
    PyObject_GetBuffer(batch, &view, PyBUF_SIMPLE)
    cursor = Cursor(<const unsigned char *>view.buf, 0, view.len)
    PyBuffer_Release(&view)                                              # both kinds stay in place while they are referenced, as `kept` does
    if count > cursor.end // SHORTEST_RECORD or cursor.end > LARGEST_BATCH:
        raise CorruptRecordException(f"A batch of {cursor.end} bytes has {count} records")
    found._reserve(max(count, 0), 1)
    found.batches[0] = Batch(<const char *>cursor.begin, cursor.end, timestamp_type)
    found.kept.append(batch)
    for _ in range(count):
        spot = &found.spots[found.count]
        length = _varint(&cursor)
        begins = cursor.at
        if not 0 < length <= cursor.end - begins:
            raise CorruptRecordException(f"A record has {length} bytes where {cursor.end - begins} are left")
        cursor.at += 1                                                   # attributes: none are defined
        spot.batch = 0
        spot.timestamp = first_time + _varint(&cursor)
        if timestamp_type:
            spot.timestamp = last_time
        spot.offset = base + _varint(&cursor)
        length_of = _varint(&cursor)
        spot.key_at, spot.key_size = <int32_t>_skip(&cursor, length_of), <int32_t>max(length_of, -1)
        length_of = _varint(&cursor)
        spot.value_at, spot.value_size = <int32_t>_skip(&cursor, length_of), <int32_t>max(length_of, -1)
        spot.headers_at = <int32_t>cursor.at
        if cursor.at >= begins + length:
            raise CorruptRecordException("A record is longer than its length field")
        cursor.at = begins + length
        if spot.offset >= begin:
            found.count += 1
    if cursor.at != cursor.end:
        raise CorruptRecordException(f"{cursor.end - cursor.at} bytes follow the last record")
    return found


@cython.final
cdef class Place:
    """The position of a message in its batch; `timestamp` is epoch milliseconds."""

    cdef readonly int64_t offset
    cdef readonly int64_t timestamp
    cdef readonly Py_ssize_t size


cdef inline uint64_t _zigzag(int64_t number) noexcept:
    """A number in zigzag form, with its sign in the lowest bit."""
    return (<uint64_t>number << 1) ^ <uint64_t>(number >> 63)


cdef inline int _size_of(int64_t number) noexcept:
    """The size of a number as a varint, in bytes."""
    cdef uint64_t value = _zigzag(number)
    cdef int size = 1
    while value > 0x7f:
        value >>= 7
        size += 1
    return size


cdef inline Py_ssize_t _size_of_bytes(object value) except -1:
    return _size_of(-1) if value is None else _size_of(PyBytes_GET_SIZE(value)) + PyBytes_GET_SIZE(value)


cdef Py_ssize_t _size_of_record(int64_t after, int64_t offset, object key, object value, object headers) except -1:
    """The size of a record without its length field, in bytes."""
    cdef Py_ssize_t size = 1 + _size_of(after) + _size_of(offset) + _size_of_bytes(key) + _size_of_bytes(value) + _size_of(len(headers)), length
    for name, content in headers:
        PyUnicode_AsUTF8AndSize(name, &length)
        size += _size_of(length) + length + _size_of_bytes(content)
    return size


cdef inline unsigned char *_put(unsigned char *at, int64_t number) noexcept:
    cdef uint64_t value = _zigzag(number)
    while value > 0x7f:
        at[0] = <unsigned char>(value & 0x7f) | 0x80
        at += 1
        value >>= 7
    at[0] = <unsigned char>value
    return at + 1


cdef inline unsigned char *_put_bytes(unsigned char *at, object value) noexcept:
    cdef Py_ssize_t size
    if value is None:
        return _put(at, -1)
    size = PyBytes_GET_SIZE(value)
    at = _put(at, size)
    memcpy(at, PyBytes_AS_STRING(value), size)
    return at + size


def crc32c(const unsigned char[::1] data):
    """CRC-32C, by the processor's instruction if it has one: twenty times as fast as aiokafka's table."""
    return crc_of(&data[0], data.shape[0]) if crc_is_an_instruction() and data.shape[0] else calc_crc32c(data)


def is_whole(const unsigned char[::1] data):
    """Whether a batch's checksum is right."""
    if data.shape[0] < HEADER_SIZE:
        return False
    checksum, = CRC.unpack_from(data, CRC_AT)
    return checksum == crc32c(data[CRC_AT + CRC.size:])


cdef class Builder:
    """Builds a record batch. It replaces aiokafka's `BatchBuilder`, which copies each message three times.

    Args:
        room: the limit of a batch's size in bytes, before compression. A first message may exceed it.
        codec: number of the codec in the attributes, 0 for none.
        encode: compresses bytes; None without a codec.
    """

    cdef Py_ssize_t room, total
    cdef int codec
    cdef object encode
    cdef list records
    cdef int64_t count, first_time, last_time
    cdef bint full
    cdef tuple producer
    cdef object built

    def __init__(self, Py_ssize_t room, int codec, encode):
        self.room, self.codec, self.encode = room, codec, encode
        self.records, self.producer = [], (-1, -1, 0)
        self.total = HEADER_SIZE

    def append(self, *, timestamp, bytes key, bytes value, headers=()):
        """Adds a message and returns its position; None if the batch has no room for it or is closed."""
        cdef int64_t time
        cdef Py_ssize_t length, size
        cdef Place place
        if self.full:
            return None
        if key is None and value is None:
            raise ValueError("a message needs a key or a value")
        time = timestamp if timestamp is not None else <int64_t>(<double>now() * 1000)
        if not self.count:
            self.first_time = self.last_time = time
        length = _size_of_record(time - self.first_time, self.count, key, value, headers)
        size = _size_of(length) + length
        if self.count and self.total + size >= self.room:
            self.full = True
            return None
        self.records.append((length, time, key, value, headers))
        self.total += size
        self.last_time = max(self.last_time, time)
        place = Place.__new__(Place)
        place.offset, place.timestamp, place.size = self.count, time, size
        self.count += 1
        return place

    def close(self):
        self.full = True

    def closed(self):
        return self.full

    def record_count(self):
        return self.count

    def size(self):
        return len(self.built) if self.built is not None else self.total

    def _set_producer_state(self, producer_id, producer_epoch, base_sequence):
        self.producer = (producer_id, producer_epoch, base_sequence)

    def _build(self):
        """The batch's bytes, built at the first call."""
        self.full = True
        if self.built is None:
            self.built = self._bytes()
            self.records = None
        return self.built

    cdef bytes _bytes(self):
        cdef bytes plain = PyBytes_FromStringAndSize(NULL, self.total - HEADER_SIZE)
        cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(plain)
        cdef int64_t time, offset = 0
        cdef Py_ssize_t length, size
        cdef const char *name
        cdef int attributes = 0
        cdef bytes data, encoded, header, checksum, built
        for length, time, key, value, headers in self.records:
            at = _put(at, length)
            at[0] = 0                                                    # attributes: none are defined
            at = _put(_put(at + 1, time - self.first_time), offset)
            at = _put_bytes(_put_bytes(at, key), value)
            at = _put(at, len(headers))
            for named, content in headers:
                name = PyUnicode_AsUTF8AndSize(named, &length)
                at = _put(at, length)
                memcpy(at, name, length)
                at = _put_bytes(at + length, content)
            offset += 1
        data = plain
        if self.encode is not None:
            encoded = self.encode(plain)
            if len(encoded) < len(plain):
                data, attributes = encoded, self.codec
        size = HEADER_SIZE + len(data)
        # the broker sets base offset and leader epoch
        header = HEADER.pack(
            0, size - PREFIX_SIZE, -1, FORMAT, 0, attributes, self.count - 1, self.first_time, self.last_time, *self.producer, self.count
        )
        built = PyBytes_FromStringAndSize(NULL, size)
        at = <unsigned char *>PyBytes_AS_STRING(built)
        memcpy(at, PyBytes_AS_STRING(header), HEADER_SIZE)
        memcpy(at + HEADER_SIZE, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        checksum = CRC.pack(crc32c(memoryview(built)[CRC_AT + CRC.size :]))
        memcpy(at + CRC_AT, PyBytes_AS_STRING(checksum), CRC.size)
        return built
