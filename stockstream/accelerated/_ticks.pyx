# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Plain ticks from JSON to columns, compiled: what `columns.read` does, for the ticks that most producers write.

At whatever is unusual about a text (an escape, a letter beyond ASCII, an unknown or repeated name, a number of 19 digits, a value out of range) `read`
stops, as if it were no tick: `columns` then looks at it, whose verdict alone counts.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.math cimport NAN, isnan
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

import numpy as np

from stockstream.accelerated._batches cimport Records, Spot
from stockstream import records as tick_records
from stockstream.transforms.cleaning import limits as ranges

cdef extern from "Python.h":
    double PyOS_string_to_double(const char *text, char **end, PyObject *overflow) except? -1.0
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef int64_t MAX_TIME = ranges.MAX_TIME, MAX_SIZE = ranges.MAX_SIZE
cdef double MIN_PRICE = ranges.MIN_PRICE, MAX_PRICE = ranges.MAX_PRICE, MAX_QUOTE_SIZE = ranges.MAX_QUOTE_SIZE
cdef Py_ssize_t MAX_SYMBOL = ranges.MAX_SYMBOL, MAX_SOURCE = ranges.MAX_SOURCE, MAX_TEXT = ranges.MAX_TEXT

cdef enum:
    # a text so long at least is a tick: {"symbol":"A","event_time":1,"price":1,"size":0}
    SHORTEST = 48
    EXACT_POWERS = 22

# names of values, as bits of what an object has
cdef enum:
    SYMBOL = 1 << 0
    EVENT_TIME = 1 << 1
    PRICE = 1 << 2
    SIZE = 1 << 3
    SOURCE = 1 << 4
    SEQ = 1 << 5
    RECEIVED_AT = 1 << 6
    BID = 1 << 7
    ASK = 1 << 8
    BID_SIZE = 1 << 9
    ASK_SIZE = 1 << 10
    SNAPSHOT = 1 << 11
    DAY_VOLUME = 1 << 12
    FIRST_TEXT = 13     # the optional texts, those that are carried first: bits FIRST_TEXT, FIRST_TEXT + 1, ...
    MOST_TEXTS = 16
    MOST_NAMES = FIRST_TEXT + MOST_TEXTS
    QUOTE = BID | ASK | BID_SIZE | ASK_SIZE
    REQUIRED = SYMBOL | EVENT_TIME | PRICE | SIZE

cdef double[EXACT_POWERS + 1] POWERS
for _power in range(EXACT_POWERS + 1):
    POWERS[_power] = 10.0 ** _power

cdef struct Text:
    const char *begin
    Py_ssize_t size


TEXT_NAMES = [name.encode() for name in sorted(tick_records.TEXTS, key=lambda name: name not in tick_records.CARRIED_TEXTS)]
if len(TEXT_NAMES) > MOST_TEXTS:
    raise ImportError(f"a tick has {len(TEXT_NAMES)} optional texts, and this reader has bits for {MOST_TEXTS}")
cdef int TEXT_COUNT = len(TEXT_NAMES), CARRIED_COUNT = len(tick_records.CARRIED_TEXTS)
cdef unsigned int CARRIED = ((1u << CARRIED_COUNT) - 1) << FIRST_TEXT, EXTRAS = QUOTE | CARRIED
cdef Text[MOST_TEXTS] NAMES
for _place, _name in enumerate(TEXT_NAMES):
    NAMES[_place] = Text(PyBytes_AS_STRING(_name), PyBytes_GET_SIZE(_name))


cdef struct Tick:
    Text symbol
    Text source
    Text[MOST_TEXTS] texts
    int64_t event_time
    int64_t size
    int64_t seq
    double price
    double[4] quote


cdef struct Key:
    const char *begin
    Py_ssize_t size
    unsigned int which


cdef struct Layout:
    # the names as they stood in the tick before, each with its quotes, colon and blanks: most producers write all their ticks alike
    Key[MOST_NAMES] keys
    Py_ssize_t count


cdef class Texts:
    """The different ones of many short texts, numbered as they come. They are kept where they stand: it must outlive this."""

    cdef Text *known
    cdef uint32_t *slots
    cdef Py_ssize_t count
    cdef Py_ssize_t room

    def __cinit__(self):
        self.room = 1024
        self._lay_out()

    def __dealloc__(self):
        PyMem_Free(self.known)
        PyMem_Free(self.slots)

    cdef int _lay_out(self) except -1:
        cdef Text *known = <Text *>PyMem_Malloc(self.room * sizeof(Text))
        cdef uint32_t *slots = <uint32_t *>PyMem_Malloc(2 * self.room * sizeof(uint32_t))
        if known is NULL or slots is NULL:
            PyMem_Free(known)
            PyMem_Free(slots)
            raise MemoryError
        memset(slots, 0, 2 * self.room * sizeof(uint32_t))
        for number in range(self.count):
            known[number] = self.known[number]
        PyMem_Free(self.known)
        PyMem_Free(self.slots)
        self.known, self.slots = known, slots
        for number in range(self.count):
            self.slots[self._slot(known[number])] = number + 1
        return 0

    cdef Py_ssize_t _slot(self, Text text) noexcept:
        """Where the text is, or would be."""
        cdef uint64_t hashed = 1469598103934665603ull
        cdef Py_ssize_t at
        cdef uint32_t number
        for at in range(text.size):
            hashed = (hashed ^ <unsigned char>text.begin[at]) * 1099511628211ull
        at = (hashed ^ (hashed >> 32)) & (2 * self.room - 1)
        while True:
            number = self.slots[at]
            if number == 0:
                return at
            if self.known[number - 1].size == text.size and memcmp(self.known[number - 1].begin, text.begin, text.size) == 0:
                return at
            at = (at + 1) & (2 * self.room - 1)

    cdef int64_t number(self, Text text) except -1:
        cdef Py_ssize_t at
        if self.count and self.known[self.count - 1].size == text.size and memcmp(self.known[self.count - 1].begin, text.begin, text.size) == 0:
            return self.count - 1
        at = self._slot(text)
        if self.slots[at]:
            return self.slots[at] - 1
        if self.count == self.room:
            self.room *= 2
            self._lay_out()
            at = self._slot(text)
        self.known[self.count] = text
        self.count += 1
        self.slots[at] = self.count
        return self.count - 1

    cdef list strings(self):
        return [PyUnicode_DecodeUTF8(self.known[number].begin, self.known[number].size, NULL) for number in range(self.count)]


cdef inline const char *_blank(const char *at) noexcept:
    while at[0] == b' ' or at[0] == b'\t' or at[0] == b'\r' or at[0] == b'\n':
        at += 1
    return at


cdef inline const char *_string(const char *at, Text *text) noexcept:
    """Behind a string of plain ASCII; NULL where it is none. What is read ends with a zero byte, at which all that is here stops."""
    if at[0] != b'"':
        return NULL
    at += 1
    text.begin = at
    while 0x20 <= <unsigned char>at[0] < 0x7f and at[0] != b'"' and at[0] != b'\\':
        at += 1
    if at[0] != b'"':
        return NULL
    text.size = at - text.begin
    return at + 1


cdef inline const char *_integer(const char *at, int64_t *value) noexcept:
    """Behind a whole number from 0 on of 18 digits at most."""
    cdef const char *begin = at
    cdef int64_t number = 0
    while b'0' <= at[0] <= b'9':
        number = number * 10 + (at[0] - 48)
        at += 1
        if at - begin > 18:
            return NULL
    if at == begin or (begin[0] == b'0' and at - begin > 1) or at[0] == b'.' or at[0] == b'e' or at[0] == b'E':
        return NULL
    value[0] = number
    return at


cdef inline const char *_number(const char *at, double *value) except? NULL:
    """Behind a number that is not negative, as the float that is nearest to it."""
    cdef const char *begin = at
    cdef uint64_t digits = 0
    cdef Py_ssize_t count = 0, behind = 0
    cdef char *end
    while b'0' <= at[0] <= b'9':
        digits = digits * 10 + <uint64_t>(at[0] - 48)
        at += 1
    count = at - begin
    if count == 0 or (begin[0] == b'0' and count > 1):
        return NULL
    if at[0] == b'.':
        at += 1
        while b'0' <= at[0] <= b'9':
            digits = digits * 10 + <uint64_t>(at[0] - 48)
            at += 1
            behind += 1
        if behind == 0:
            return NULL
        count += behind
    if count <= 18 and digits <= (1ull << 53) and behind <= EXACT_POWERS and at[0] != b'e' and at[0] != b'E':
        value[0] = <double>digits / POWERS[behind]                       # of two exact numbers: rounded once
        return at
    if at[0] == b'e' or at[0] == b'E':
        at += 1
        if at[0] == b'+' or at[0] == b'-':
            at += 1
        if not b'0' <= at[0] <= b'9':
            return NULL
        while b'0' <= at[0] <= b'9':
            at += 1
    value[0] = PyOS_string_to_double(begin, &end, NULL)              # infinite where it is too large
    return at if end == at else NULL


cdef inline const char *_word(const char *at, const char *word) noexcept:
    """Behind this word; NULL where there is another."""
    while word[0]:
        if at[0] != word[0]:
            return NULL
        at += 1
        word += 1
    return at


cdef inline bint _is(Text name, const char *what, Py_ssize_t size) noexcept:
    return name.size == size and memcmp(name.begin, what, size) == 0


cdef inline unsigned int _which(Text name) noexcept:
    """The bit of a value's name; 0 for an unknown one."""
    cdef char first = name.begin[0]
    cdef int place
    if first == b's':
        if _is(name, b"symbol", 6): return SYMBOL
        if _is(name, b"size", 4): return SIZE
        if _is(name, b"source", 6): return SOURCE
        if _is(name, b"seq", 3): return SEQ
        if _is(name, b"snapshot", 8): return SNAPSHOT
    elif first == b'e':
        if _is(name, b"event_time", 10): return EVENT_TIME
    elif first == b'p':
        if _is(name, b"price", 5): return PRICE
    elif first == b'b':
        if _is(name, b"bid", 3): return BID
        if _is(name, b"bid_size", 8): return BID_SIZE
    elif first == b'a':
        if _is(name, b"ask", 3): return ASK
        if _is(name, b"ask_size", 8): return ASK_SIZE
    elif _is(name, b"received_at", 11): return RECEIVED_AT
    elif _is(name, b"day_volume", 10): return DAY_VOLUME
    for place in range(TEXT_COUNT):
        if _is(name, NAMES[place].begin, NAMES[place].size): return 1u << (FIRST_TEXT + place)
    return 0


cdef inline int _text_of(unsigned int which) noexcept:
    """Which of the optional texts has this bit."""
    cdef int place = 0
    while which >> (FIRST_TEXT + place) > 1:
        place += 1
    return place


cdef const char *_tick(const char *at, const char *end, Layout *layout, Tick *tick, unsigned int *has) except? NULL:
    """Behind a plain tick; NULL where it is none. `has` are the bits of its values but for the nulls; a price is always in it."""
    cdef Text name, text
    cdef unsigned int seen = 0, absent = 0, which
    cdef Py_ssize_t place = 0
    cdef Key *key
    cdef const char *begin
    cdef int64_t number
    cdef double low, high
    cdef double *quote
    tick.price = NAN
    if at[0] != b'{':
        return NULL
    at = _blank(at + 1)
    while True:
        if place == MOST_NAMES:
            return NULL
        key = &layout.keys[place]
        if place < layout.count and key.size <= end - at and memcmp(at, key.begin, key.size) == 0:
            which = key.which
            at += key.size
        else:
            begin = at
            at = _string(at, &name)
            if at is NULL:
                return NULL
            which = _which(name)
            at = _blank(at)
            if which == 0 or at[0] != b':':
                return NULL
            at = _blank(at + 1)
            key.begin, key.size, key.which = begin, at - begin, which
            layout.count = place + 1
        place += 1
        if which & seen:
            return NULL
        seen |= which
        at = _blank(at)
        if at[0] == b'n':
            if which & (SYMBOL | EVENT_TIME | SIZE | SOURCE | SNAPSHOT):
                return NULL
            at = _word(at, b"null")
            absent |= which & ~<unsigned int>PRICE
        elif which == PRICE:
            at = _number(at, &tick.price)
            if at is NULL or not MIN_PRICE <= tick.price <= MAX_PRICE:
                return NULL
        elif which & QUOTE:
            if which & (BID | ASK):
                quote, low, high = &tick.quote[0 if which == BID else 1], MIN_PRICE, MAX_PRICE
            else:
                quote, low, high = &tick.quote[2 if which == BID_SIZE else 3], 0.0, MAX_QUOTE_SIZE
            at = _number(at, quote)
            if at is NULL or not low <= quote[0] <= high:
                return NULL
        elif which & (EVENT_TIME | SIZE | SEQ | RECEIVED_AT):
            at = _integer(at, &number)
            if which == EVENT_TIME:
                tick.event_time = number
            elif which == SIZE:
                tick.size = number
            elif which == SEQ:
                tick.seq = number
        elif which == SNAPSHOT:
            at = _word(at, b"false")
        elif which == DAY_VOLUME:
            return NULL
        else:
            at = _string(at, &text)
            if at is NULL or text.size > MAX_TEXT:
                return NULL
            if which == SYMBOL:
                tick.symbol = text
            elif which == SOURCE:
                tick.source = text
            elif which & CARRIED:
                tick.texts[_text_of(which)] = text
        if at is NULL:
            return NULL
        at = _blank(at)
        if at[0] == b'}':
            break
        if at[0] != b',':
            return NULL
        at = _blank(at + 1)
    if seen & REQUIRED != REQUIRED or not 0 < tick.event_time < MAX_TIME or tick.size > MAX_SIZE or (tick.size and isnan(tick.price)):
        return NULL
    if not 0 < tick.symbol.size <= MAX_SYMBOL or (seen & SOURCE and not 0 < tick.source.size <= MAX_SOURCE):
        return NULL
    has[0] = seen & ~absent
    return at + 1


def read(records):
    """The ticks of records as columns, from the first record on as far as all are plain, and either all or none have a number; None where the first is not.

    Returns (offset, timestamp) of each record read, the different symbols, (record, symbol, event_time, size) of each tick, its price (NaN: none), seq or
    None, (the different sources, source or None where there is only one), and by name what else any tick has: floats with NaN, or (the different texts,
    which of them or -1).
    """
    cdef Py_ssize_t count = len(records), total = 0, ticks = 0, number, size
    cdef const char *at
    cdef const char *end
    cdef unsigned int has = 0, some = 0, here = 0
    cdef Tick tick
    cdef Layout layout
    cdef Texts symbols = Texts(), sources = Texts()
    cdef unsigned int extras = EXTRAS
    cdef list carried = [Texts() for _ in range(CARRIED_COUNT)]
    cdef Texts of_text
    cdef int which
    cdef Text default = Text(b"default", 7)
    cdef object record
    cdef Records batched = records if type(records) is Records else None
    cdef Spot *spot
    cdef const char *data
    cdef list values = []
    cdef Py_ssize_t[2 + MOST_TEXTS] known
    places, begins = np.empty((2, count), np.int64), np.empty((2, count), np.intp)
    cdef int64_t[:, ::1] place = places
    cdef Py_ssize_t[:, ::1] begin = begins

    for number in range(count):
        spot = &batched.spots[number] if batched is not None else NULL
        data = batched.batches[spot.batch].data if spot is not NULL else NULL
        if data is not NULL and spot.value_size > 0 and data[spot.value_at + spot.value_size] == 0:
            at, size = data + spot.value_at, spot.value_size
            place[0, number], place[1, number] = spot.offset, spot.timestamp
        else:                                                            # bytes end with a zero, as what has no headers does in its batch
            record = records[number]
            value = record.value
            if not PyBytes_CheckExact(value):
                count = number
                break
            values.append(value)
            at, size = PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
            place[0, number], place[1, number] = record.offset, record.timestamp
        if size < SHORTEST:
            count = number
            break
        begin[0, number], begin[1, number] = <Py_ssize_t>at, size
        total += size
    longest = total // SHORTEST + 1                                      # no more ticks than that
    firsts, prices = np.empty((6, longest), np.int64), np.empty(longest)
    cdef int64_t[:, ::1] ints = firsts
    cdef double[::1] price = prices
    cdef double[:, ::1] quote = None
    cdef int64_t[:, ::1] texts = None
    cdef Py_ssize_t first

    layout.count = 0
    for number in range(count):
        at = <const char *>begin[0, number]
        end = at + begin[1, number]
        first, here = ticks, some
        known[0], known[1] = symbols.count, sources.count
        if texts is not None:
            for which in range(CARRIED_COUNT):
                known[2 + which] = (<Texts>carried[which]).count
        at = _blank(at)
        frame = at[0] == b'['
        if frame:
            at = _blank(at + 1)
        while True:
            at = _tick(at, end, &layout, &tick, &has)
            if at is NULL or ticks == longest or (ticks and (has ^ here) & SEQ):
                at = NULL
                break
            if has & ~here & extras:
                if quote is None:
                    quotes, marks = np.full((4, longest), np.nan), np.full((CARRIED_COUNT, longest), -1)
                    quote, texts = quotes, marks
                    for which in range(CARRIED_COUNT):
                        known[2 + which] = 0
            here |= has
            ints[0, ticks], ints[1, ticks], ints[2, ticks], ints[3, ticks] = number, symbols.number(tick.symbol), tick.event_time, tick.size
            ints[4, ticks] = tick.seq if has & SEQ else 0
            ints[5, ticks] = sources.number(tick.source if has & SOURCE else default)
            price[ticks] = tick.price
            if has & extras:
                if has & BID: quote[0, ticks] = tick.quote[0]
                if has & ASK: quote[1, ticks] = tick.quote[1]
                if has & BID_SIZE: quote[2, ticks] = tick.quote[2]
                if has & ASK_SIZE: quote[3, ticks] = tick.quote[3]
                if has & CARRIED:
                    for which in range(CARRIED_COUNT):
                        if has & (1u << (FIRST_TEXT + which)):
                            of_text = carried[which]
                            texts[which, ticks] = of_text.number(tick.texts[which])
            ticks += 1
            if not frame:
                break
            at = _blank(at)
            if at[0] == b']':
                at += 1
                break
            if at[0] != b',':
                at = NULL
                break
            at = _blank(at + 1)
        if at is NULL or _blank(at) != end:                              # as if nothing of this record had been read
            ticks, count = first, number
            symbols.count, sources.count = known[0], known[1]
            if texts is not None:
                for which in range(CARRIED_COUNT):
                    of_text = carried[which]
                    of_text.count = known[2 + which]
            break
        some = here
    if count == 0:
        return None
    more = {}
    for number, name in enumerate(("bid", "ask", "bid_size", "ask_size")):
        if some & (<unsigned int>BID << number):
            more[name] = quotes[number, :ticks]
    for which in range(CARRIED_COUNT):
        if some & (1u << (FIRST_TEXT + which)):
            of_text = carried[which]
            more[TEXT_NAMES[which].decode()] = (of_text.strings(), marks[which, :ticks])
    several = sources.count > 1
    return (
        places[0, :count], places[1, :count], symbols.strings(), firsts[0, :ticks], firsts[1, :ticks], firsts[2, :ticks], firsts[3, :ticks], prices[:ticks],
        firsts[4, :ticks] if some & SEQ else None, sources.strings(), firsts[5, :ticks] if several else None, more,
    )


def coded(const int32_t[::1] offsets, const uint8_t[::1] data):
    """The different texts of an Arrow string array without nulls, in the order of their first appearance, and which of them each is."""
    cdef Py_ssize_t number, count = offsets.shape[0] - 1
    cdef Texts texts = Texts()
    codes = np.empty(count, np.int64)
    cdef int64_t[::1] code = codes
    cdef const char *begin = <const char *>&offsets[0]                   # without any bytes every text is empty, wherever
    if data.shape[0]:
        begin = <const char *>&data[0]
    for number in range(count):
        if not 0 <= offsets[number] <= offsets[number + 1] <= data.shape[0]:
            raise ValueError("not a string array: its offsets do not ascend within its bytes")
        code[number] = texts.number(Text(begin + offsets[number], offsets[number + 1] - offsets[number]))
    return texts.strings(), codes


def spread(list texts, const int64_t[::1] which):
    """Offsets and bytes of the Arrow string array that holds, one after the other, these of the texts; nothing where the number is negative."""
    cdef Py_ssize_t number, count = which.shape[0], total = 0, room = len(texts)
    cdef Text *known = <Text *>PyMem_Malloc((room or 1) * sizeof(Text))
    cdef uint64_t *heads = <uint64_t *>PyMem_Malloc((room or 1) * sizeof(uint64_t))
    try:
        if known is NULL or heads is NULL:
            raise MemoryError
        for number in range(room):
            known[number].begin = PyUnicode_AsUTF8AndSize(texts[number], &known[number].size)
            heads[number] = 0
            memcpy(&heads[number], known[number].begin, min(known[number].size, sizeof(uint64_t)))
        offsets = np.empty(count + 1, np.int32)
        for number in range(count):
            if which[number] >= room:
                raise IndexError(which[number])
            if which[number] >= 0:
                total += known[which[number]].size
        if total > 0x7fffffff:
            raise OverflowError("texts of more than 2 GiB")
        data = np.empty(total + sizeof(uint64_t), np.uint8)
        _spread(known, heads, which, offsets, data)
        return offsets, data[:total]
    finally:
        PyMem_Free(known)
        PyMem_Free(heads)


cdef void _spread(Text *known, uint64_t *heads, const int64_t[::1] which, int32_t[::1] offsets, uint8_t[::1] data):
    """Eight bytes of every text are written, in one go, and the next text over what was too much: most are no longer."""
    cdef Py_ssize_t number, size, at = 0
    offsets[0] = 0
    for number in range(which.shape[0]):
        if which[number] >= 0:
            size = known[which[number]].size
            memcpy(&data[at], &heads[which[number]], sizeof(uint64_t))
            if size > <Py_ssize_t>sizeof(uint64_t):
                memcpy(&data[at], known[which[number]].begin, size)
            at += size
        offsets[number + 1] = <int32_t>at
