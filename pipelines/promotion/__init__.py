"""Stage: the alias `champion` moves only when the evidence says so.

gates.py     what is demanded (a YAML file) and whether it holds: pure functions
dossier.py   what is known of a model: evidence from MLflow, facts of its files
aliases.py   candidate, champion, previous; serialised by a lease in the store
explain.py   where a registered model came from
run.py       register, judge, move; roll back
"""
