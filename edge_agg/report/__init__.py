"""What the command line shows a person: statements of loss, predicted errors, the state of an agent.

Place: beside the composition root, for `edge-agg check`, `status` and the bars of `run`; it spends and changes nothing.

| module | job |
|---|---|
| check.py | what a plan or a config would cost and release, and what the device's policy says to it |
| state.py | an agent's state: what its journal says, and while it runs what it says itself |
| live.py | asks a running agent |
| status.py | the state as a page, or as JSON |
| bars.py | how far a run is |
"""
