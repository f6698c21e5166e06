-- Volume profile by time of day
-- The share of a symbol's volume in each half hour (UTC), over a range of dates.
SELECT symbol, hour(minute) AS hour, minute(minute) - minute(minute) % 30 AS from_minute, sum(volume) AS volume,
       sum(volume) * 100 / sum(sum(volume)) OVER (PARTITION BY symbol) AS percent
FROM bars_1m
WHERE symbol = 'AAPL' AND date BETWEEN DATE '2023-10-09' AND DATE '2023-10-10'
GROUP BY symbol, hour(minute), minute(minute) - minute(minute) % 30
ORDER BY hour, from_minute
