"""The settings that suit this data and this machine, found by trying."""
