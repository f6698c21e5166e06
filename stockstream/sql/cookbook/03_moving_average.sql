-- The 5-minute moving average over the day
-- 300 rows of the second series. A second without a tick has no row, so 300 rows may be more than 300 seconds; `mean_5m` is
-- the pipeline's average over exactly 300 seconds, for comparison.
SELECT symbol, time, price, mean_5m,
       avg(price) OVER (PARTITION BY symbol, source ORDER BY second ROWS BETWEEN 299 PRECEDING AND CURRENT ROW) AS mean_300_rows
FROM windows
WHERE symbol = 'AAPL' AND date = DATE '2023-10-10'
ORDER BY source, time
