"""Accuracy before spending: what noise, clipping and bounding will do to a plan's answers.

| module | job |
|---|---|
| sample.py | the agent's own path, without noise, over a sample of events |
| study.py | what each bound of a plan takes away from that sample |
| choice.py | the bounds and the epsilon with the least error |
| wanted.py | what an accuracy costs |
| page.py | the tables that a person reads; `text.py` writes the figures |
"""
