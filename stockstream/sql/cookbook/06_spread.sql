-- Spread by hour
-- The mean and the widest spread in basis points of the mid. `mid` is null where a quote cannot be believed.
SELECT symbol, hour, count(*) AS seconds, avg((ask - bid) / mid) * 10000 AS mean_bps, max((ask - bid) / mid) * 10000 AS widest_bps
FROM windows
WHERE date = DATE '2023-10-10' AND mid IS NOT NULL
GROUP BY symbol, hour
ORDER BY symbol, hour
