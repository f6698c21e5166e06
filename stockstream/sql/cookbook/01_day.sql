-- A symbol's day: open, high, low, close, volume and VWAP
-- One row for each source that has the symbol. `vwap` is exact, because each minute's is weighted with its volume.
SELECT symbol, source, min_by(open, minute) AS open, max(high) AS high, min(low) AS low, max_by(close, minute) AS close,
       sum(volume) AS volume, sum(vwap * volume) / nullif(sum(volume), 0) AS vwap, sum(ticks) AS ticks
FROM bars_1m
WHERE symbol = 'AAPL' AND date = DATE '2023-10-10'
GROUP BY symbol, source
ORDER BY source
