"""From wherever the pictures and captions lie to the batches that a step trains on."""
