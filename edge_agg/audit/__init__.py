"""The journal's books, gone over again: does what was charged and released follow from the plans?

| module | job |
|---|---|
| books.py | reads the journal's file, by SQL of its own, in one snapshot |
| charges.py | each charge against its plan, compiled again from the stored text |
| chain.py | each release against its place in the chain, its plan and its charges |
| losses.py | each release's loss, recomputed from its mechanisms by their maps |
| recount.py | both, and every account against its budget |
| page.py | what a person, or a program, is shown |
| export.py | the rows as they are, for an auditor elsewhere |
"""
