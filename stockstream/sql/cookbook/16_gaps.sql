-- Minutes into which a gap of the feed reaches
-- Their figures may lack trades; a repaired bar stands where the symbol has no tick at all.
SELECT symbol, source, minute, ticks, volume, repaired
FROM bars_1m
WHERE date = DATE '2023-10-10' AND gap
ORDER BY symbol, minute, source
