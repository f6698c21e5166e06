-- Top movers of the day
-- The ten symbols whose price has changed most, in per cent from the first to the last trade of the day.
SELECT symbol, min_by(open, minute) AS first_price, max_by(close, minute) AS last_price,
       (max_by(close, minute) / min_by(open, minute) - 1) * 100 AS change_percent, sum(volume) AS volume
FROM bars_1m
WHERE date = DATE '2023-10-10' AND NOT repaired
GROUP BY symbol
ORDER BY abs(max_by(close, minute) / min_by(open, minute) - 1) DESC, symbol
LIMIT 10
