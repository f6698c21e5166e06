-- Bars of five minutes
-- The same works for any number of minutes that divides 60.
SELECT symbol, source, minute - INTERVAL '1' MINUTE * (minute(minute) % 5) AS start,
       min_by(open, minute) AS open, max(high) AS high, min(low) AS low, max_by(close, minute) AS close, sum(volume) AS volume
FROM bars_1m
WHERE symbol = 'AAPL' AND date = DATE '2023-10-10'
GROUP BY symbol, source, minute - INTERVAL '1' MINUTE * (minute(minute) % 5)
ORDER BY source, start
