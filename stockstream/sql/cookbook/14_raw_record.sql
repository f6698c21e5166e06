-- From a tick back to its raw record
-- The record as it was received, and how many milliseconds after its event time it arrived in Kafka.
SELECT t.symbol, t.event_time, t.price, r."timestamp" - date_diff('millisecond', TIMESTAMP '1970-01-01 00:00:00', t.event_time) AS late_ms, r.value
FROM ticks t
JOIN raw r ON r.log = t.log AND r.partition = t.partition AND r."offset" = t."offset"
WHERE t.symbol = 'AAPL' AND t.date = DATE '2023-10-10' AND t.hour = 12 AND r.date = DATE '2023-10-10'
ORDER BY t.event_time, t."offset", t."index"
LIMIT 20
