"""A certificate authority for a small fleet: a root that stays offline, an issuer beside the collector.

| file | purpose |
|---|---|
| `certificate.py` | builds and reads X.509 certificates; no disk |
| `keys.py` | the authority's keys on the disk, encrypted if a passphrase is kept elsewhere |
| `index.py` | what was issued, and the one-time tokens, in one SQLite file |
| `denylist.py` | what it writes into its list of the denied |
| `folder.py` | the authority's folder: its keys, its index, its list of what is denied |

On disk: `root.pem`, `root.key` (to be moved offline), `issuer.pem`, `issuer.key`, `index.sqlite`, `denied.txt`.
"""
