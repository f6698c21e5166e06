-- What the archive has of each symbol
-- From the view `symbols`, which reads all dates: add a condition on `bars_1m` instead if the archive is large.
SELECT symbol, source, first_minute, last_minute, ticks, volume, last_price
FROM symbols
ORDER BY symbol, source
