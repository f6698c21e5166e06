"""Alpha Vantage: quotes by polling within a budget of requests, and one-minute bars of the past."""
