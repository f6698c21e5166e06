"""The batch transport: an agent receives the records that one fetch returned for one partition as one event.

No other package depends on the internals of Faust and aiokafka.

| module | what it does |
| --- | --- |
| `messages` | what agents receive (`Chunk`) and send (`Message`, `Outgoing`) |
| `consumer` | gives an agent one chunk for each partition and fetch, and seeks partitions to the position that their state gives |
| `fetching` | the thread that fetches: whole record batches, parsed where they are processed |
| `guard` | checks that offsets are contiguous; it reads a hole again once, then records and skips it |
| `loopback` | frames that this worker wrote, delivered without a fetch once the broker has confirmed them |
| `pacing` | when to fetch, and how long to pause |
| `sending` | one producer for the worker; one ordered pipe for each agent and partition: deliver, then write state |
| `producer` | the idempotent producer |
| `fence`, `watching` | end the process when it may no longer own its partitions |
| `hops` | the header with the time at which each agent sent a frame |
| `patches` | replacements of private parts of aiokafka, installed by one call |
"""
