"""Where changes of alerts are sent, one kind of route a file.

| module | what it has |
| --- | --- |
| `route` | the contract: `Route`, its failures, the settings that all kinds share |
| `notices` | what is sent: a change of an alert, a summary, a test |
| `opening` | the kinds by name, and how a route is opened |
| `http` | what the kinds over HTTP share |
| `sns`, `webhook`, `slack`, `email`, `log` | the kinds |
"""
