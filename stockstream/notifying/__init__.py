"""Sends changes of alerts to routes. The agent `notify` runs it beside the stream, which never waits for it.

| module | what it has |
| --- | --- |
| `choosing` | which changes a route sends: repeats, filters, severities that rise |
| `limits` | how many a route sends a minute, and the summary of the others |
| `positions` | what is stored of a route, and the contract of the ledger |
| `delivery` | one route: reads `alerts` from its positions on, sends, tries again, gives up |
| `deliveries` | all routes of the file, which is read again when it changes |
"""
