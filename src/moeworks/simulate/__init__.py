"""What a system would do with the routing of a trace.

cache          experts in fast memory: policies, the optimum, bytes and stalls
prefetch       how many experts a guess has ready
placement      experts and replicas on devices: EPLB, and per-device load over time
communication  devices that a token is sent to, with and without a limit
touched        experts that a batch or a speculation step touches
synthetic      traces with a chosen skew and stickiness
"""
