"""What is wrong with an agent and the device under it, what to do about it, and a bundle for those who help.

Place: for `edge-agg doctor`, above every other room of the edge; it changes nothing, and is safe while the agent runs.

| module | job |
|---|---|
| finding.py | one thing that was looked at |
| examine.py | everything that is looked at, in order |
| folder.py | the state folder and its journal: rights, room, whether the books follow |
| around.py | its clock, collector, sources, files of secrets and certificates, and the process itself |
| redact.py | a config without its secrets |
| bundle.py | the support bundle, which holds nothing of the data |
| page.py | what a person is shown |
"""
