-- Prediction quality by hour
-- `hits` is the share of predictions with the right sign, where the price moved. `brier` is the mean squared error of `p_up`: 0.25 is worth nothing.
SELECT date_trunc('hour', as_of) AS hour, model, version, role, horizon_s, count(*) AS outcomes,
       avg(CASE WHEN realised_return <> 0 THEN CASE WHEN (predicted_return > 0) = (realised_return > 0) THEN 1e0 ELSE 0e0 END END) AS hits,
       avg(abs(predicted_return - realised_return)) AS mean_error,
       avg((p_up - CASE WHEN realised_return > 0 THEN 1e0 ELSE 0e0 END) * (p_up - CASE WHEN realised_return > 0 THEN 1e0 ELSE 0e0 END)) AS brier
FROM outcomes
WHERE date = DATE '2023-10-10'
GROUP BY date_trunc('hour', as_of), model, version, role, horizon_s
ORDER BY 1, model, version, role, horizon_s
