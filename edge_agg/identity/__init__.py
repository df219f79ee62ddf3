"""Who this agent is: a certificate and its key on the disk, how it got them, and how it gets the next.

| file | purpose |
|---|---|
| `files.py` | certificate, key and CA on the disk: read, replaced together, repaired after a crash |
| `credentials.py` | what the files hold now, as credentials for a channel |
| `request.py` | a fresh key, the request for a certificate over it, the check of what comes back |
| `enroll.py` | the first certificate, for a one-time token |
| `renewal.py` | the next one, before this one ends |
"""
