"""The batch transport: what one fetch brought of one partition is one event. The only package that knows the inside of Faust and aiokafka.

| module | what it does |
| --- | --- |
| `messages` | what agents receive (`Chunk`) and send (`Message`, `Outgoing`) |
| `consumer` | gives an agent one chunk for each partition and fetch, and puts partitions where their state says |
| `fetching` | the thread that fetches: whole record batches, parsed where they are worked on |
| `guard` | checks that offsets follow each other; a hole is read again once, then recorded and passed |
| `loopback` | frames that this worker wrote itself, delivered once the broker has confirmed them |
| `pacing` | when to fetch, and how long to pause |
| `sending` | one producer for the worker; one ordered pipe for each agent and partition: deliver, then write state |
| `producer` | the idempotent producer |
| `fence`, `watching` | end the process when it may no longer own its partitions |
| `hops` | the header with the times at which each agent sent |
| `patches` | what stands in for private parts of aiokafka, put in by one call |
"""
