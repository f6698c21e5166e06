-- The strongest predictions and what came of them
-- Predictions joined with their outcomes; those without an outcome yet have null.
SELECT p.symbol, p.as_of, p.horizon_s, p.price, p.predicted_return, p.p_up, o.realised_return
FROM predictions p
LEFT JOIN outcomes o ON o.symbol = p.symbol AND o.as_of = p.as_of AND o.horizon_s = p.horizon_s AND o.model = p.model AND o.version = p.version
    AND o.date = DATE '2023-10-10'
WHERE p.date = DATE '2023-10-10'
ORDER BY abs(p.predicted_return) DESC, p.symbol, p.as_of, p.horizon_s
LIMIT 20
