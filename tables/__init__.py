"""The Faust tables: one for each stateful agent, and what a record in them means.

| table | records of a partition | written |
| --- | --- | --- |
| `clean` | `snapshot`: the whole state at a raw offset (`transforms.validation`) | about once a second, after the frame |
| `aggregate` | buckets of closed seconds and a head (`transforms.windows`) | after the rows of a frame's closings |
| `detect` | buckets of open alerts and a head (`transforms.alert_state`) | after the alerts |
| `score` | predictions to be judged, the roster of models and a head (`transforms.scoring`) | after predictions and outcomes |

Every key ends with its writer's term, so a worker that was frozen and wakes can only replace its own records; every value tells how far the log is
counted. What a restart uses is, of all terms, what counts the furthest.
"""

from stockstream.app import app
from tables.state import StateTable

clean = StateTable(app, "clean")
aggregate = StateTable(app, "aggregate")
detect = StateTable(app, "detect")
score = StateTable(app, "score")
