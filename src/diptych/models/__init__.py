"""The two towers and what joins them: single-device modules, shapes in their signatures."""
