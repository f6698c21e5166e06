# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What `transforms.windows.arithmetic` does to each cell, compiled: the same operations in the same order, so the same bits.

Cells are arrays (field, column, row) of 8 bytes, `own` and `past` as in `transforms.windows.cells`; a second's column is the second modulo the number of columns.
Logarithms are left to numpy, whose last bit is not that of the C library. No multiplication and addition may become one: see the compiler's flags.
"""

from libc.math cimport INFINITY, NAN, isnan, sqrt
from libc.stdint cimport INT64_MIN, int64_t, uint8_t

import numpy as np

from stockstream.transforms import timing

cdef int64_t WINDOW_S = timing.WINDOW_S

# places of the fields, told by `fields`
cdef Py_ssize_t OPEN, CLOSE, BID, ASK, BID_SIZE, ASK_SIZE, QUOTES, VOLUME, TICKS, BEGUN, LAST
cdef Py_ssize_t NOTIONAL_HEAD, RETURN_HEAD, PRICE_HEAD, SQUARES_HEAD, HIGH_HEAD, LOW_HEAD
cdef Py_ssize_t HIGH, LOW, NOTIONAL, LOG_RETURN, PRICE, VOLUME_TOTAL, TICKS_TOTAL
cdef Py_ssize_t NOTIONAL_TAIL, RETURN_TAIL, PRICE_TAIL, SQUARES_TAIL, HIGH_TAIL, LOW_TAIL


def fields(tuple own, tuple past):
    """Says where the fields stand."""
    global OPEN, CLOSE, BID, ASK, BID_SIZE, ASK_SIZE, QUOTES, VOLUME, TICKS, BEGUN, LAST
    global NOTIONAL_HEAD, RETURN_HEAD, PRICE_HEAD, SQUARES_HEAD, HIGH_HEAD, LOW_HEAD
    global HIGH, LOW, NOTIONAL, LOG_RETURN, PRICE, VOLUME_TOTAL, TICKS_TOTAL
    global NOTIONAL_TAIL, RETURN_TAIL, PRICE_TAIL, SQUARES_TAIL, HIGH_TAIL, LOW_TAIL
    OPEN, CLOSE, BID, ASK, BID_SIZE, ASK_SIZE, QUOTES, VOLUME, TICKS, BEGUN, LAST = (
        own.index(name) for name in ("open", "close", "bid", "ask", "bid_size", "ask_size", "quotes", "volume", "ticks", "begun", "last")
    )
    NOTIONAL_HEAD, RETURN_HEAD, PRICE_HEAD, SQUARES_HEAD, HIGH_HEAD, LOW_HEAD = (
        own.index(f"{name}_head") for name in ("notional", "log_return", "price", "squares", "high", "low")
    )
    HIGH, LOW, NOTIONAL, LOG_RETURN, PRICE, VOLUME_TOTAL, TICKS_TOTAL = (
        past.index(name) for name in ("high", "low", "notional", "log_return", "price", "volume_total", "ticks_total")
    )
    NOTIONAL_TAIL, RETURN_TAIL, PRICE_TAIL, SQUARES_TAIL, HIGH_TAIL, LOW_TAIL = (
        past.index(f"{name}_tail") for name in ("notional", "log_return", "price", "squares", "high", "low")
    )


cdef inline Py_ssize_t _column(int64_t second, Py_ssize_t width) noexcept:
    """A second's column; seconds before 1970 have one too, where a log begins with it."""
    cdef Py_ssize_t at = second % width
    return at + width if at < 0 else at


cdef inline Py_ssize_t _before(Py_ssize_t column, int64_t seconds, Py_ssize_t width) noexcept:
    """The column of so many seconds before, fewer than there are columns."""
    column -= seconds
    return column + width if column < 0 else column


cdef inline double _square_added(double change, double before, int64_t count) noexcept:
    """As `arithmetic._squares_added`."""
    cdef double apart = change - before / <double>(count if count > 1 else 1)
    return apart * apart * (<double>count / <double>(count + 1))


def add(own_cells, past_cells, const int64_t[::1] symbol, const int64_t[::1] second, const double[::1] price, const int64_t[::1] size):
    """Adds ticks to their seconds, one after the other; a price of NaN is a quote's."""
    cdef int64_t[:, :, ::1] own = own_cells
    cdef int64_t[:, :, ::1] past = past_cells
    cdef double[:, :, ::1] own_floats = own_cells.view(np.float64)
    cdef double[:, :, ::1] past_floats = past_cells.view(np.float64)
    cdef Py_ssize_t number, here, there, row, own_width = own.shape[1], past_width = past.shape[1]
    cdef int64_t newest = INT64_MIN
    cdef double paid
    here = there = 0
    for number in range(symbol.shape[0]):
        row = symbol[number]
        if second[number] != newest:
            newest = second[number]
            here, there = _column(newest, own_width), _column(newest, past_width)
        paid = price[number]
        if isnan(paid):
            own[QUOTES, here, row] += 1
            continue
        own[TICKS, here, row] += 1
        own[VOLUME, here, row] += size[number]
        past_floats[NOTIONAL, there, row] += paid * <double>size[number]
        if paid > past_floats[HIGH, there, row]:
            past_floats[HIGH, there, row] = paid
        if paid < past_floats[LOW, there, row]:
            past_floats[LOW, there, row] = paid
        if isnan(own_floats[OPEN, here, row]):
            own_floats[OPEN, here, row] = paid
        own_floats[CLOSE, here, row] = paid


def carry_prices(own_cells, past_cells, const int64_t[::1] rows, int64_t first, int64_t last):
    """Prices and what follows from them in the seconds `first` to `last`, whose columns follow each other. In place of log returns: what they are logarithms of."""
    cdef int64_t[:, :, ::1] own = own_cells
    cdef int64_t[:, :, ::1] past = past_cells
    cdef double[:, :, ::1] own_floats = own_cells.view(np.float64)
    cdef double[:, :, ::1] past_floats = past_cells.view(np.float64)
    cdef Py_ssize_t number, row, here, there, before_here, before_there
    cdef int64_t second, seen, begun
    cdef double price, former
    here, there = _column(first, own.shape[1]), _column(first, past.shape[1])
    before_here, before_there = (here or own.shape[1]) - 1, (there or past.shape[1]) - 1
    for second in range(first, last + 1):
        for number in range(rows.shape[0]):
            row = rows[number]
            seen, begun = own[LAST, before_here, row], own[BEGUN, before_here, row]
            price, former = own_floats[CLOSE, here, row], past_floats[PRICE, before_there, row]
            if not isnan(price):
                if second - seen > WINDOW_S and second > begun:
                    begun = second
                seen = max(seen, second)
            elif second - seen <= WINDOW_S:
                price = former
            own[LAST, here, row], own[BEGUN, here, row] = seen, begun
            past_floats[PRICE, there, row] = price
            past_floats[LOG_RETURN, there, row] = price / former if price != former and second > begun and not isnan(price) else 1.0
            past[VOLUME_TOTAL, there, row] = past[VOLUME_TOTAL, before_there, row] + own[VOLUME, here, row]
            past[TICKS_TOTAL, there, row] = past[TICKS_TOTAL, before_there, row] + own[TICKS, here, row]
        before_here, before_there = here, there
        here += 1
        there += 1


def sum_heads(own_cells, past_cells, const int64_t[::1] rows, int64_t first, int64_t last, int64_t stretch):
    """Heads in the seconds `first` to `last`, whose columns follow each other, of the stretch that begins with second `stretch`."""
    cdef int64_t[:, :, ::1] own = own_cells
    cdef double[:, :, ::1] head = own_cells.view(np.float64)
    cdef double[:, :, ::1] past = past_cells.view(np.float64)
    cdef Py_ssize_t number, row, here, there, before
    cdef int64_t second, begun, count
    cdef double price, change
    cdef double notional_sum, return_sum, price_sum, squares, high, low
    here, there = _column(first, own.shape[1]), _column(first, past.shape[1])
    before = (here or own.shape[1]) - 1
    for second in range(first, last + 1):
        for number in range(rows.shape[0]):
            row = rows[number]
            begun, price, change = own[BEGUN, here, row], past[PRICE, there, row], past[LOG_RETURN, there, row]
            if isnan(price):
                price = 0.0
            if second == stretch:
                notional_sum = return_sum = price_sum = squares = 0.0
                high, low = -INFINITY, INFINITY
            else:
                notional_sum, return_sum, price_sum = head[NOTIONAL_HEAD, before, row], head[RETURN_HEAD, before, row], head[PRICE_HEAD, before, row]
                squares, high, low = head[SQUARES_HEAD, before, row], head[HIGH_HEAD, before, row], head[LOW_HEAD, before, row]
            count = max(second - max(stretch, begun + 1), 0)
            head[NOTIONAL_HEAD, here, row] = notional_sum + past[NOTIONAL, there, row]
            head[RETURN_HEAD, here, row] = return_sum + change
            head[PRICE_HEAD, here, row] = price if begun == second else price_sum + price
            head[SQUARES_HEAD, here, row] = squares + _square_added(change, return_sum, count)
            head[HIGH_HEAD, here, row] = max(high, past[HIGH, there, row])
            head[LOW_HEAD, here, row] = min(low, past[LOW, there, row])
        before = here
        here += 1
        there += 1


def sum_tails(past_cells, const int64_t[::1] rows, int64_t first, int64_t last):
    """Tails in the seconds `first` to `last`, the end of a stretch."""
    cdef double[:, :, ::1] past = past_cells.view(np.float64)
    cdef Py_ssize_t number, row, there, behind = 0
    cdef int64_t second
    cdef double change, return_sum
    for second in range(last, first - 1, -1):
        there = _column(second, past.shape[1])
        for number in range(rows.shape[0]):
            row = rows[number]
            change = past[LOG_RETURN, there, row]
            if second == last:
                past[NOTIONAL_TAIL, there, row], past[RETURN_TAIL, there, row] = past[NOTIONAL, there, row], change
                past[PRICE_TAIL, there, row], past[SQUARES_TAIL, there, row] = past[PRICE, there, row], _square_added(change, 0.0, 0)
                past[HIGH_TAIL, there, row], past[LOW_TAIL, there, row] = past[HIGH, there, row], past[LOW, there, row]
                continue
            return_sum = past[RETURN_TAIL, behind, row]
            past[NOTIONAL_TAIL, there, row] = past[NOTIONAL_TAIL, behind, row] + past[NOTIONAL, there, row]
            past[RETURN_TAIL, there, row] = return_sum + change
            past[PRICE_TAIL, there, row] = past[PRICE_TAIL, behind, row] + past[PRICE, there, row]
            past[SQUARES_TAIL, there, row] = past[SQUARES_TAIL, behind, row] + _square_added(change, return_sum, last - second)
            past[HIGH_TAIL, there, row] = max(past[HIGH_TAIL, behind, row], past[HIGH, there, row])
            past[LOW_TAIL, there, row] = min(past[LOW_TAIL, behind, row], past[LOW, there, row])
        behind = there


FLOATS = (
    "open", "close", "bid", "ask", "bid_size", "ask_size", "high", "low", "mean_5m", "vwap_5m", "return_std_5m", "high_5m", "low_5m", "mid", "price",
    "price_60s", "return_1s", "return_5s", "return_10s", "return_30s", "return_60s",
)
INTS = ("second", "volume", "ticks", "quotes", "seconds_5m", "volume_10s", "volume_60s", "volume_5m", "ticks_10s", "ticks_5m")
cdef int64_t[5] LAGS_S = timing.LAGS_S


def statistics(own_cells, past_cells, const int64_t[::1] rows, const int64_t[::1] seconds):
    """The row values of these cells: arrays of FLOATS (NaN where there is none; of the returns, what they are logarithms of) and of INTS."""
    cdef int64_t[:, :, ::1] own = own_cells
    cdef int64_t[:, :, ::1] past = past_cells
    cdef double[:, :, ::1] own_floats = own_cells.view(np.float64)
    cdef double[:, :, ::1] past_floats = past_cells.view(np.float64)
    cdef Py_ssize_t number, row, here = 0, there = 0, at, lag, width = past.shape[1]
    cdef int64_t second = INT64_MIN, begun, stretch = 0, length, returns, first, returning, others
    cdef double carried, notional, prices, squares, high, low, return_tail, squares_tail, apart, mid
    cdef bint alive
    floats_out, ints_out = np.empty((len(FLOATS), rows.shape[0])), np.empty((len(INTS), rows.shape[0]), np.int64)
    cdef double[:, ::1] out = floats_out
    cdef int64_t[:, ::1] ints = ints_out
    for number in range(rows.shape[0]):
        row = rows[number]
        if seconds[number] != second:
            second = seconds[number]
            here, there = _column(second, own.shape[1]), _column(second, width)
            stretch = second - second % WINDOW_S
        begun, carried = own[BEGUN, here, row], past_floats[PRICE, there, row]
        alive = not isnan(carried)
        length = min(second - begun + 1, WINDOW_S) if alive else 0
        returns = length - (second - begun < WINDOW_S)
        ints[0, number], ints[1, number], ints[2, number], ints[3, number] = second, own[VOLUME, here, row], own[TICKS, here, row], own[QUOTES, here, row]
        ints[4, number] = length
        ints[5, number] = past[VOLUME_TOTAL, there, row] - past[VOLUME_TOTAL, _before(there, 10, width), row]
        ints[6, number] = past[VOLUME_TOTAL, there, row] - past[VOLUME_TOTAL, _before(there, 60, width), row]
        ints[7, number] = past[VOLUME_TOTAL, there, row] - past[VOLUME_TOTAL, _before(there, WINDOW_S, width), row]
        ints[8, number] = past[TICKS_TOTAL, there, row] - past[TICKS_TOTAL, _before(there, 10, width), row]
        ints[9, number] = past[TICKS_TOTAL, there, row] - past[TICKS_TOTAL, _before(there, WINDOW_S, width), row]

        # the window: the end of a stretch, if it begins in the one before, and the beginning of another
        first = max(second - (WINDOW_S - 1), begun)
        notional, prices, squares = own_floats[NOTIONAL_HEAD, here, row], own_floats[PRICE_HEAD, here, row], own_floats[SQUARES_HEAD, here, row]
        high, low = own_floats[HIGH_HEAD, here, row], own_floats[LOW_HEAD, here, row]
        at, return_tail, squares_tail = there, 0.0, 0.0
        returning = max(stretch - max(first, begun + 1), 0)
        if first < stretch:
            at = _before(there, second - first, width)
            notional = notional + past_floats[NOTIONAL_TAIL, at, row]
            prices = prices + past_floats[PRICE_TAIL, at, row]
            high, low = max(high, past_floats[HIGH_TAIL, at, row]), min(low, past_floats[LOW_TAIL, at, row])
            return_tail = past_floats[RETURN_TAIL, at, row]
        if returning > 0:
            squares_tail = past_floats[SQUARES_TAIL, (at + 1 if at + 1 < width else 0) if first == begun else at, row]
        others = returns - returning
        apart = return_tail / <double>max(returning, 1) - own_floats[RETURN_HEAD, here, row] / <double>max(others, 1)
        squares = squares + (squares_tail + apart * apart * (<double>(returning * others) / <double>max(returns, 1)))

        out[0, number], out[1, number] = own_floats[OPEN, here, row], own_floats[CLOSE, here, row]
        out[2, number], out[3, number] = own_floats[BID, here, row], own_floats[ASK, here, row]
        out[4, number], out[5, number] = own_floats[BID_SIZE, here, row], own_floats[ASK_SIZE, here, row]
        out[6, number] = past_floats[HIGH, there, row] if ints[2, number] > 0 else NAN
        out[7, number] = past_floats[LOW, there, row] if ints[2, number] > 0 else NAN
        out[8, number] = prices / <double>length if length > 0 else NAN
        out[9, number] = notional / <double>ints[7, number] if ints[7, number] > 0 else NAN
        out[10, number] = sqrt(squares / <double>(returns - 1)) if returns > 1 else NAN
        out[11, number] = high if ints[9, number] > 0 else NAN
        out[12, number] = low if ints[9, number] > 0 else NAN
        mid = (out[2, number] + out[3, number]) / 2
        out[13, number] = mid
        out[14, number] = mid if not isnan(mid) else out[1, number] if not isnan(out[1, number]) else carried
        for lag in range(5):
            at = _before(there, LAGS_S[lag], width)
            out[16 + lag, number] = carried / past_floats[PRICE, at, row] if alive and second - LAGS_S[lag] >= begun else NAN
        out[15, number] = past_floats[PRICE, _before(there, 60, width), row] if alive and second - 60 >= begun else NAN
    return floats_out, ints_out


def live(own_cells, const int64_t[::1] rows, const int64_t[::1] seconds):
    """The rows, and of each its second, that have ticks or quotes: by second, in the order of `rows`."""
    cdef int64_t[:, :, ::1] own = own_cells
    cdef Py_ssize_t at, number, row, here, count = 0
    found = np.empty((2, seconds.shape[0] * rows.shape[0]), np.int64)
    cdef int64_t[:, ::1] out = found
    for at in range(seconds.shape[0]):
        here = _column(seconds[at], own.shape[1])
        for number in range(rows.shape[0]):
            row = rows[number]
            if own[TICKS, here, row] + own[QUOTES, here, row] > 0:
                out[0, count], out[1, count] = row, seconds[at]
                count += 1
    return found[0, :count], found[1, :count]


def stored(own_cells, past_cells, const int64_t[::1] rows, const int64_t[::1] seconds, const int64_t[::1] own_fields, const int64_t[::1] past_fields):
    """What is kept of these cells: array (field, cell), the first fields of `own` and of `past` at these places."""
    cdef int64_t[:, :, ::1] own = own_cells
    cdef int64_t[:, :, ::1] past = past_cells
    cdef Py_ssize_t number, field, row, here = 0, there = 0
    cdef int64_t second = INT64_MIN
    told = np.empty((own_fields.shape[0] + past_fields.shape[0], rows.shape[0]), np.int64)
    cdef int64_t[:, ::1] out = told
    for number in range(rows.shape[0]):
        row = rows[number]
        if seconds[number] != second:
            second = seconds[number]
            here, there = _column(second, own.shape[1]), _column(second, past.shape[1])
        for field in range(own_fields.shape[0]):
            out[own_fields[field], number] = own[field, here, row]
        for field in range(past_fields.shape[0]):
            out[past_fields[field], number] = past[field, there, row]
    return told


def known(const double[::1] values, uint8_t[::1] bits):
    """How many of the values are not NaN. Which, goes to `bits`, the lowest of a byte first: Arrow's validity bitmap."""
    cdef Py_ssize_t number, at = 0, count = 0
    cdef int place
    cdef unsigned int byte, told
    while at + 8 <= values.shape[0]:
        byte = 0
        for place in range(8):
            told = values[at + place] == values[at + place]
            byte |= told << place
            count += told
        bits[at >> 3] = byte
        at += 8
    if at < values.shape[0]:
        byte = 0
        for number in range(at, values.shape[0]):
            told = values[number] == values[number]
            byte |= told << (number - at)
            count += told
        bits[at >> 3] = byte
    return count
