-- Correlation of two symbols
-- Of their one-minute returns over the day.
SELECT count(*) AS minutes, corr(a.minute_return, b.minute_return) AS correlation
FROM (
    SELECT minute, close / lag(close) OVER (ORDER BY minute) - 1 AS minute_return
    FROM bars_1m WHERE symbol = 'AAPL' AND date = DATE '2023-10-10'
) AS a
JOIN (
    SELECT minute, close / lag(close) OVER (ORDER BY minute) - 1 AS minute_return
    FROM bars_1m WHERE symbol = 'MSFT' AND date = DATE '2023-10-10'
) AS b ON a.minute = b.minute
