-- Realised volatility by hour
-- The standard deviation of one-minute log returns, in basis points.
SELECT symbol, date_trunc('hour', minute) AS hour, count(*) AS minutes, stddev_samp(minute_return) * 10000 AS volatility_bps
FROM (
    SELECT symbol, minute, ln(close / lag(close) OVER (PARTITION BY symbol, source ORDER BY minute)) AS minute_return
    FROM bars_1m
    WHERE date = DATE '2023-10-10'
) AS returns
WHERE minute_return IS NOT NULL
GROUP BY symbol, date_trunc('hour', minute)
ORDER BY symbol, hour
