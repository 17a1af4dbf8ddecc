"""What is done with a whole data set: audit, pack, and write as tars."""
