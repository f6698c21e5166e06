"""The Faust tables, one a file: what a record in each of them means.

A key ends with its writer's term, so a worker that was frozen and wakes can only replace its own records. A value says
through which raw offset it counts. A restart uses, of all terms, the record that counts furthest.
"""
