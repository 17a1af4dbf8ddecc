"""What every other room stands on: errors, samples, settings, keyed randomness."""
