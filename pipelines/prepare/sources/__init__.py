"""What a source holds: listings, archives, tables, labels."""
