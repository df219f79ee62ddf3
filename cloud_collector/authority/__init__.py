"""A certificate authority for a small fleet: a root that stays offline, an issuer beside the collector.

| file | purpose |
|---|---|
| `certificate.py` | builds and reads X.509 certificates; no disk |
| `index.py` | what was issued, and the one-time tokens, in one SQLite file |
| `folder.py` | the authority's folder: its keys, its index, its list of what is denied |

On disk: `root.pem`, `root.key` (to be moved offline), `issuer.pem`, `issuer.key`, `index.sqlite`, `denied.txt`.
"""
