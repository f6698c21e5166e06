-- The largest trades of the day
-- By turnover, with the place of each in the log.
SELECT symbol, event_time, price, size, price * size AS turnover, log, partition, "offset", "index"
FROM ticks
WHERE date = DATE '2023-10-10' AND price IS NOT NULL
ORDER BY price * size DESC, log, partition, "offset", "index"
LIMIT 20
