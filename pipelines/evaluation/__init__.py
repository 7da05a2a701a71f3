"""What a model is worth: one file per measurement, its data, and the report over all of them."""
