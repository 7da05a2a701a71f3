"""Stage: the features of many images, as Parquet that other programs read.

config.py      what a person can ask
sources.py     the images of any source that `prepare` reads, or of a dataset, in units of work
worker.py      Ray actor: reads, decodes and embeds the images of a unit, writes its file
features.py    the files: Arrow schema, manifest, reading them
run.py         list, embed what is missing, commit
neighbours.py  nearest neighbours of a query image, as a table and a contact sheet
"""
