-- Alerts by rule and hour
-- How many alerts each rule opened, and how long they lasted (null while none of them is closed).
SELECT rule, date_trunc('hour', opened_at) AS opened, count(*) FILTER (WHERE state = 'opened') AS alerts,
       count(DISTINCT symbol) AS symbols, avg(date_diff('second', opened_at, as_of)) FILTER (WHERE state = 'closed') AS mean_seconds
FROM alerts
WHERE date = DATE '2023-10-10'
GROUP BY rule, date_trunc('hour', opened_at)
ORDER BY opened, rule
