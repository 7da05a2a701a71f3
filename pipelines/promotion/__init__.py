"""Stage: the alias `champion` moves only when the evidence says so.

gates.py     what is demanded (a YAML file) and whether it holds: pure functions
dossier.py   what is known of a model: evidence from MLflow, facts of its files
attached.py  files of runs and models: there, not there, or not to be read
explain.py   where a registered model came from
run.py       register, judge, move; roll back; one at a time, by a lease in the store
"""
