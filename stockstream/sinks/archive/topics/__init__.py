"""The topics `windows`, `alerts`, `predictions` and `outcomes` in the archive.

The records of a topic partition are archived in steps. A *position* (`positions`) is created first: it fixes which records the step accounts for, and lists
the objects with their rows. Then come the objects (`objects`), which are a function of those records and of the archive before them. Both are create-only, so
of several writers one wins, and the others continue from its position. After a crash between the two, the next writer reads the records from Kafka again, and
creates the objects that are missing.

What Kafka has twice counts once. A row of `windows` counts by its raw offset: a position has the ranges of raw offsets that are accounted for (`frames`).
A row of the other topics is left out if a row of the same identity is in the archive already (`repeated`).
"""
