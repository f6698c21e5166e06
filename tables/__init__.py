"""The Faust tables, one per file: what a record in each of them means.

A key ends with its writer's term, so a worker that was frozen and resumes can only replace its own records. A value
contains the raw offset through which it counts. A restart uses the record with the highest such offset of all terms.
"""
