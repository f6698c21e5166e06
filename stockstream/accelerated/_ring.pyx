# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What `transforms.windows.arithmetic` does to each cell, compiled: the same operations in the same order, so the same bits.

Cells are arrays (field, column, symbol) of 8 bytes, `current` and `past` as in `transforms.windows.cells`; `indexes` are those of symbols.
A second's column is the second modulo the number of columns.
Logarithms are left to numpy, whose last bit is not that of the C library. No multiplication and addition may become one: see the compiler's flags.
"""

from libc.math cimport INFINITY, NAN, isnan, sqrt
from libc.stdint cimport INT64_MIN, int64_t, uint8_t

import numpy as np

from stockstream.transforms import timing

cdef int64_t WINDOW_S = timing.WINDOW_S

# places of the fields, set by `fields`
cdef Py_ssize_t OPEN, CLOSE, BID, ASK, BID_SIZE, ASK_SIZE, QUOTES, VOLUME, TICKS, SERIES_START, LAST
cdef Py_ssize_t NOTIONAL_PREFIX, RETURN_PREFIX, PRICE_PREFIX, SQUARES_PREFIX, HIGH_PREFIX, LOW_PREFIX
cdef Py_ssize_t HIGH, LOW, NOTIONAL, LOG_RETURN, PRICE, VOLUME_TOTAL, TICKS_TOTAL
cdef Py_ssize_t NOTIONAL_SUFFIX, RETURN_SUFFIX, PRICE_SUFFIX, SQUARES_SUFFIX, HIGH_SUFFIX, LOW_SUFFIX


def fields(tuple current, tuple past):
    """Sets the places of the fields."""
    global OPEN, CLOSE, BID, ASK, BID_SIZE, ASK_SIZE, QUOTES, VOLUME, TICKS, SERIES_START, LAST
    global NOTIONAL_PREFIX, RETURN_PREFIX, PRICE_PREFIX, SQUARES_PREFIX, HIGH_PREFIX, LOW_PREFIX
    global HIGH, LOW, NOTIONAL, LOG_RETURN, PRICE, VOLUME_TOTAL, TICKS_TOTAL
    global NOTIONAL_SUFFIX, RETURN_SUFFIX, PRICE_SUFFIX, SQUARES_SUFFIX, HIGH_SUFFIX, LOW_SUFFIX
    OPEN, CLOSE, BID, ASK, BID_SIZE, ASK_SIZE, QUOTES, VOLUME, TICKS, SERIES_START, LAST = (
        current.index(name) for name in ("open", "close", "bid", "ask", "bid_size", "ask_size", "quotes", "volume", "ticks", "series_start", "last")
    )
    NOTIONAL_PREFIX, RETURN_PREFIX, PRICE_PREFIX, SQUARES_PREFIX, HIGH_PREFIX, LOW_PREFIX = (
        current.index(f"{name}_prefix") for name in ("notional", "log_return", "price", "squares", "high", "low")
    )
    HIGH, LOW, NOTIONAL, LOG_RETURN, PRICE, VOLUME_TOTAL, TICKS_TOTAL = (
        past.index(name) for name in ("high", "low", "notional", "log_return", "price", "volume_total", "ticks_total")
    )
    NOTIONAL_SUFFIX, RETURN_SUFFIX, PRICE_SUFFIX, SQUARES_SUFFIX, HIGH_SUFFIX, LOW_SUFFIX = (
        past.index(f"{name}_suffix") for name in ("notional", "log_return", "price", "squares", "high", "low")
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


def add(current_cells, past_cells, const int64_t[::1] symbol, const int64_t[::1] second, const double[::1] price, const int64_t[::1] size):
    """Adds ticks to their seconds, one after the other; a price of NaN is a quote's."""
    cdef int64_t[:, :, ::1] current = current_cells
    cdef int64_t[:, :, ::1] past = past_cells
    cdef double[:, :, ::1] current_floats = current_cells.view(np.float64)
    cdef double[:, :, ::1] past_floats = past_cells.view(np.float64)
    cdef Py_ssize_t number, here, there, index, current_width = current.shape[1], past_width = past.shape[1]
    cdef int64_t newest = INT64_MIN
    cdef double paid
    here = there = 0
    for number in range(symbol.shape[0]):
        index = symbol[number]
        if second[number] != newest:
            newest = second[number]
            here, there = _column(newest, current_width), _column(newest, past_width)
        paid = price[number]
        if isnan(paid):
            current[QUOTES, here, index] += 1
            continue
        current[TICKS, here, index] += 1
        current[VOLUME, here, index] += size[number]
        past_floats[NOTIONAL, there, index] += paid * <double>size[number]
        if paid > past_floats[HIGH, there, index]:
            past_floats[HIGH, there, index] = paid
        if paid < past_floats[LOW, there, index]:
            past_floats[LOW, there, index] = paid
        if isnan(current_floats[OPEN, here, index]):
            current_floats[OPEN, here, index] = paid
        current_floats[CLOSE, here, index] = paid


def carry_prices(current_cells, past_cells, const int64_t[::1] indexes, int64_t first, int64_t last):
    """Prices and what follows from them in the seconds `first` to `last`, whose columns follow each other.

    In place of log returns it writes what they are logarithms of.
    """
    cdef int64_t[:, :, ::1] current = current_cells
    cdef int64_t[:, :, ::1] past = past_cells
    cdef double[:, :, ::1] current_floats = current_cells.view(np.float64)
    cdef double[:, :, ::1] past_floats = past_cells.view(np.float64)
    cdef Py_ssize_t number, index, here, there, before_here, before_there
    cdef int64_t second, seen, series_start
    cdef double price, former
    here, there = _column(first, current.shape[1]), _column(first, past.shape[1])
    before_here, before_there = (here or current.shape[1]) - 1, (there or past.shape[1]) - 1
    for second in range(first, last + 1):
        for number in range(indexes.shape[0]):
            index = indexes[number]
            seen, series_start = current[LAST, before_here, index], current[SERIES_START, before_here, index]
            price, former = current_floats[CLOSE, here, index], past_floats[PRICE, before_there, index]
            if not isnan(price):
                if second - seen > WINDOW_S and second > series_start:
                    series_start = second
                seen = max(seen, second)
            elif second - seen <= WINDOW_S:
                price = former
            current[LAST, here, index], current[SERIES_START, here, index] = seen, series_start
            past_floats[PRICE, there, index] = price
            past_floats[LOG_RETURN, there, index] = price / former if price != former and second > series_start and not isnan(price) else 1.0
            past[VOLUME_TOTAL, there, index] = past[VOLUME_TOTAL, before_there, index] + current[VOLUME, here, index]
            past[TICKS_TOTAL, there, index] = past[TICKS_TOTAL, before_there, index] + current[TICKS, here, index]
        before_here, before_there = here, there
        here += 1
        there += 1


def sum_prefixes(current_cells, past_cells, const int64_t[::1] indexes, int64_t first, int64_t last, int64_t stretch):
    """Prefix sums in the seconds `first` to `last`, whose columns follow each other, of the stretch that begins with second `stretch`."""
    cdef int64_t[:, :, ::1] current = current_cells
    cdef double[:, :, ::1] prefix = current_cells.view(np.float64)
    cdef double[:, :, ::1] past = past_cells.view(np.float64)
    cdef Py_ssize_t number, index, here, there, before
    cdef int64_t second, series_start, count
    cdef double price, change
    cdef double notional_sum, return_sum, price_sum, squares, high, low
    here, there = _column(first, current.shape[1]), _column(first, past.shape[1])
    before = (here or current.shape[1]) - 1
    for second in range(first, last + 1):
        for number in range(indexes.shape[0]):
            index = indexes[number]
            series_start, price, change = current[SERIES_START, here, index], past[PRICE, there, index], past[LOG_RETURN, there, index]
            if isnan(price):
                price = 0.0
            if second == stretch:
                notional_sum = return_sum = price_sum = squares = 0.0
                high, low = -INFINITY, INFINITY
            else:
                notional_sum, return_sum = prefix[NOTIONAL_PREFIX, before, index], prefix[RETURN_PREFIX, before, index]
                price_sum = prefix[PRICE_PREFIX, before, index]
                squares, high, low = prefix[SQUARES_PREFIX, before, index], prefix[HIGH_PREFIX, before, index], prefix[LOW_PREFIX, before, index]
            count = max(second - max(stretch, series_start + 1), 0)
            prefix[NOTIONAL_PREFIX, here, index] = notional_sum + past[NOTIONAL, there, index]
            prefix[RETURN_PREFIX, here, index] = return_sum + change
            prefix[PRICE_PREFIX, here, index] = price if series_start == second else price_sum + price
            prefix[SQUARES_PREFIX, here, index] = squares + _square_added(change, return_sum, count)
            prefix[HIGH_PREFIX, here, index] = max(high, past[HIGH, there, index])
            prefix[LOW_PREFIX, here, index] = min(low, past[LOW, there, index])
        before = here
        here += 1
        there += 1


def sum_suffixes(past_cells, const int64_t[::1] indexes, int64_t first, int64_t last):
    """Suffix sums in the seconds `first` to `last`, the end of a stretch."""
    cdef double[:, :, ::1] past = past_cells.view(np.float64)
    cdef Py_ssize_t number, index, there, behind = 0
    cdef int64_t second
    cdef double change, return_sum
    for second in range(last, first - 1, -1):
        there = _column(second, past.shape[1])
        for number in range(indexes.shape[0]):
            index = indexes[number]
            change = past[LOG_RETURN, there, index]
            if second == last:
                past[NOTIONAL_SUFFIX, there, index], past[RETURN_SUFFIX, there, index] = past[NOTIONAL, there, index], change
                past[PRICE_SUFFIX, there, index], past[SQUARES_SUFFIX, there, index] = past[PRICE, there, index], _square_added(change, 0.0, 0)
                past[HIGH_SUFFIX, there, index], past[LOW_SUFFIX, there, index] = past[HIGH, there, index], past[LOW, there, index]
                continue
            return_sum = past[RETURN_SUFFIX, behind, index]
            past[NOTIONAL_SUFFIX, there, index] = past[NOTIONAL_SUFFIX, behind, index] + past[NOTIONAL, there, index]
            past[RETURN_SUFFIX, there, index] = return_sum + change
            past[PRICE_SUFFIX, there, index] = past[PRICE_SUFFIX, behind, index] + past[PRICE, there, index]
            past[SQUARES_SUFFIX, there, index] = past[SQUARES_SUFFIX, behind, index] + _square_added(change, return_sum, last - second)
            past[HIGH_SUFFIX, there, index] = max(past[HIGH_SUFFIX, behind, index], past[HIGH, there, index])
            past[LOW_SUFFIX, there, index] = min(past[LOW_SUFFIX, behind, index], past[LOW, there, index])
        behind = there


FLOATS = (
    "open", "close", "bid", "ask", "bid_size", "ask_size", "high", "low", "mean_5m", "vwap_5m", "return_std_5m", "high_5m", "low_5m", "mid", "price",
    "price_60s", "return_1s", "return_5s", "return_10s", "return_30s", "return_60s",
)
INTS = ("second", "volume", "ticks", "quotes", "seconds_5m", "volume_10s", "volume_60s", "volume_5m", "ticks_10s", "ticks_5m")
cdef int64_t[5] LAGS_S = timing.LAGS_S


def statistics(current_cells, past_cells, const int64_t[::1] indexes, const int64_t[::1] seconds):
    """The row values of these cells: arrays of FLOATS (NaN where there is none; of the returns, what they are logarithms of) and of INTS."""
    cdef int64_t[:, :, ::1] current = current_cells
    cdef int64_t[:, :, ::1] past = past_cells
    cdef double[:, :, ::1] current_floats = current_cells.view(np.float64)
    cdef double[:, :, ::1] past_floats = past_cells.view(np.float64)
    cdef Py_ssize_t number, index, here = 0, there = 0, at, lag, width = past.shape[1]
    cdef int64_t second = INT64_MIN, series_start, stretch = 0, length, returns, first, returning, others
    cdef double carried, notional, prices, squares, high, low, return_suffix, squares_suffix, apart, mid
    cdef bint alive
    floats_out, ints_out = np.empty((len(FLOATS), indexes.shape[0])), np.empty((len(INTS), indexes.shape[0]), np.int64)
    cdef double[:, ::1] out = floats_out
    cdef int64_t[:, ::1] ints = ints_out
    for number in range(indexes.shape[0]):
        index = indexes[number]
        if seconds[number] != second:
            second = seconds[number]
            here, there = _column(second, current.shape[1]), _column(second, width)
            stretch = second - second % WINDOW_S
        series_start, carried = current[SERIES_START, here, index], past_floats[PRICE, there, index]
        alive = not isnan(carried)
        length = min(second - series_start + 1, WINDOW_S) if alive else 0
        returns = length - (second - series_start < WINDOW_S)
        ints[0, number], ints[1, number] = second, current[VOLUME, here, index]
        ints[2, number], ints[3, number] = current[TICKS, here, index], current[QUOTES, here, index]
        ints[4, number] = length
        ints[5, number] = past[VOLUME_TOTAL, there, index] - past[VOLUME_TOTAL, _before(there, 10, width), index]
        ints[6, number] = past[VOLUME_TOTAL, there, index] - past[VOLUME_TOTAL, _before(there, 60, width), index]
        ints[7, number] = past[VOLUME_TOTAL, there, index] - past[VOLUME_TOTAL, _before(there, WINDOW_S, width), index]
        ints[8, number] = past[TICKS_TOTAL, there, index] - past[TICKS_TOTAL, _before(there, 10, width), index]
        ints[9, number] = past[TICKS_TOTAL, there, index] - past[TICKS_TOTAL, _before(there, WINDOW_S, width), index]

        # the window: the end of a stretch, if it begins in the one before, and the beginning of another
        first = max(second - (WINDOW_S - 1), series_start)
        notional, prices = current_floats[NOTIONAL_PREFIX, here, index], current_floats[PRICE_PREFIX, here, index]
        squares = current_floats[SQUARES_PREFIX, here, index]
        high, low = current_floats[HIGH_PREFIX, here, index], current_floats[LOW_PREFIX, here, index]
        at, return_suffix, squares_suffix = there, 0.0, 0.0
        returning = max(stretch - max(first, series_start + 1), 0)
        if first < stretch:
            at = _before(there, second - first, width)
            notional = notional + past_floats[NOTIONAL_SUFFIX, at, index]
            prices = prices + past_floats[PRICE_SUFFIX, at, index]
            high, low = max(high, past_floats[HIGH_SUFFIX, at, index]), min(low, past_floats[LOW_SUFFIX, at, index])
            return_suffix = past_floats[RETURN_SUFFIX, at, index]
        if returning > 0:
            squares_suffix = past_floats[SQUARES_SUFFIX, (at + 1 if at + 1 < width else 0) if first == series_start else at, index]
        others = returns - returning
        apart = return_suffix / <double>max(returning, 1) - current_floats[RETURN_PREFIX, here, index] / <double>max(others, 1)
        squares = squares + (squares_suffix + apart * apart * (<double>(returning * others) / <double>max(returns, 1)))

        out[0, number], out[1, number] = current_floats[OPEN, here, index], current_floats[CLOSE, here, index]
        out[2, number], out[3, number] = current_floats[BID, here, index], current_floats[ASK, here, index]
        out[4, number], out[5, number] = current_floats[BID_SIZE, here, index], current_floats[ASK_SIZE, here, index]
        out[6, number] = past_floats[HIGH, there, index] if ints[2, number] > 0 else NAN
        out[7, number] = past_floats[LOW, there, index] if ints[2, number] > 0 else NAN
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
            out[16 + lag, number] = carried / past_floats[PRICE, at, index] if alive and second - LAGS_S[lag] >= series_start else NAN
        out[15, number] = past_floats[PRICE, _before(there, 60, width), index] if alive and second - 60 >= series_start else NAN
    return floats_out, ints_out


def live(current_cells, const int64_t[::1] indexes, const int64_t[::1] seconds):
    """The indexes of symbols, and the second of each, that have ticks or quotes: by second, in the order of `indexes`."""
    cdef int64_t[:, :, ::1] current = current_cells
    cdef Py_ssize_t at, number, index, here, count = 0
    found = np.empty((2, seconds.shape[0] * indexes.shape[0]), np.int64)
    cdef int64_t[:, ::1] out = found
    for at in range(seconds.shape[0]):
        here = _column(seconds[at], current.shape[1])
        for number in range(indexes.shape[0]):
            index = indexes[number]
            if current[TICKS, here, index] + current[QUOTES, here, index] > 0:
                out[0, count], out[1, count] = index, seconds[at]
                count += 1
    return found[0, :count], found[1, :count]


def stored(
    current_cells, past_cells, const int64_t[::1] indexes, const int64_t[::1] seconds, const int64_t[::1] current_fields, const int64_t[::1] past_fields
):
    """What is kept of these cells: array (field, cell), the first fields of `current` and of `past` at these places."""
    cdef int64_t[:, :, ::1] current = current_cells
    cdef int64_t[:, :, ::1] past = past_cells
    cdef Py_ssize_t number, field, index, here = 0, there = 0
    cdef int64_t second = INT64_MIN
    kept = np.empty((current_fields.shape[0] + past_fields.shape[0], indexes.shape[0]), np.int64)
    cdef int64_t[:, ::1] out = kept
    for number in range(indexes.shape[0]):
        index = indexes[number]
        if seconds[number] != second:
            second = seconds[number]
            here, there = _column(second, current.shape[1]), _column(second, past.shape[1])
        for field in range(current_fields.shape[0]):
            out[current_fields[field], number] = current[field, here, index]
        for field in range(past_fields.shape[0]):
            out[past_fields[field], number] = past[field, there, index]
    return kept


def known(const double[::1] values, uint8_t[::1] bits):
    """How many of the values are not NaN. Which, goes to `bits`, the lowest of a byte first: Arrow's validity bitmap."""
    cdef Py_ssize_t number, at = 0, count = 0
    cdef int place
    cdef unsigned int byte, kept
    while at + 8 <= values.shape[0]:
        byte = 0
        for place in range(8):
            kept = values[at + place] == values[at + place]
            byte |= kept << place
            count += kept
        bits[at >> 3] = byte
        at += 8
    if at < values.shape[0]:
        byte = 0
        for number in range(at, values.shape[0]):
            kept = values[number] == values[number]
            byte |= kept << (number - at)
            count += kept
        bits[at >> 3] = byte
    return count
