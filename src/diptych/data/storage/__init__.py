"""Storage below the sources: columns of rows, folders, zips, and tars with their indexes."""
