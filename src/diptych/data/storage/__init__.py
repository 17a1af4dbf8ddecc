"""What sources are read from: columns of rows, folders, tars and their indexes."""
