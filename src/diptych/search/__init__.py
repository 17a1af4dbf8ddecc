"""An index in step with folders, and answers to queries with a bundle."""
