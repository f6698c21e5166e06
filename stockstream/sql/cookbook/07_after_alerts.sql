-- What followed an alert
-- For each alert the last price before it (ASOF), the price five minutes later, and the range between.
SELECT a.id, a.symbol, a.rule, a.severity, a.as_of, a.value,
       max_by(w.price, w.time) FILTER (WHERE w.time < a.as_of) AS price_before,
       max_by(w.price, w.time) FILTER (WHERE w.time >= a.as_of) AS price_after,
       min(w.low) FILTER (WHERE w.time >= a.as_of) AS low_after,
       max(w.high) FILTER (WHERE w.time >= a.as_of) AS high_after
FROM alerts a
LEFT JOIN windows w ON w.symbol = a.symbol AND w.price IS NOT NULL AND w.date = DATE '2023-10-10'
    AND w.time BETWEEN a.as_of - INTERVAL '5' MINUTE AND a.as_of + INTERVAL '5' MINUTE
WHERE a.state = 'opened' AND a.date = DATE '2023-10-10'
GROUP BY a.id, a.symbol, a.rule, a.severity, a.as_of, a.value
ORDER BY a.as_of, a.id
